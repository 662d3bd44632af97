"""A run that is killed, twice, ends as one that never stopped: bit for bit."""

import os
import random

import keras
import numpy as np

import processes
from kgen.recipes import VAERecipe

STEPS_PER_EPOCH = 11  # 1,439 training rows in batches of 128, the rest dropped
EPOCHS = 6


class WatchedRecipe(VAERecipe):
    """The recipe of `kgen fit vae`, which sends the step after each execution."""

    sender = None  # the end of a pipe

    def make_model(self, data, steps_per_epoch):
        model = super().make_model(data, steps_per_epoch)
        fit = model.fit

        def watched(*args, callbacks, **options):
            send = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: self.sender.send(
                    int(model.step.numpy())
                )
            )
            return fit(*args, callbacks=[*callbacks, send], **options)

        model.fit = watched
        return model


def train(folder, steps_per_execution, sender=None):
    """Starts the run in this folder, or goes on with it."""
    WatchedRecipe.sender = sender
    recipe = (WatchedRecipe if sender else VAERecipe)(
        epochs=EPOCHS,
        batch_size=128,
        latent_dim=4,
        hidden_units=(16,),
        steps_per_execution=steps_per_execution,
        checkpoint_seconds=0,
        sample_epochs=EPOCHS,
        measure="none",
        export="none",
        folder=str(folder.parent),
        name=folder.name,
    )
    recipe.run(resume=True, report=lambda line: None)


def train_and_kill(folder, steps_per_execution, kill_after):
    """Kills the process after a step; returns the steps it took."""
    receiver, sender = processes.pipe()
    with processes.Process(train, folder, steps_per_execution, sender) as process:
        sender.close()
        steps = [0]
        while steps[-1] < kill_after:
            assert receiver.poll(processes.LIMIT_SECONDS), process.output
            steps.append(receiver.recv())
        process.kill()
        assert process.wait() == -9
    return steps[1:]


def final_state(folder):
    """Weights, step, and the variables of the optimizer after the last epoch."""
    with np.load(folder / "checkpoint" / "state.npz") as arrays:
        return dict(arrays)


def test_a_run_killed_at_random_steps_ends_as_if_never_stopped(tmp_path):
    seed = int(os.environ.get("KGEN_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KGEN_TEST_SEED={seed}")  # shown when the test fails
    draw = random.Random(seed)
    steps_per_execution = draw.choice([1, 4])
    total = STEPS_PER_EPOCH * EPOCHS
    # Not so late that the killed process could be through before the signal comes.
    first = draw.randint(1, total // 2)
    second = draw.randint(first + 5, total - 15)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    steps = train_and_kill(killed, steps_per_execution, first)
    print(f"killed at {steps[-1]}, with {steps_per_execution} steps per execution")
    assert steps[0] <= steps_per_execution
    resumed = train_and_kill(killed, steps_per_execution, second)
    print(f"resumed at {resumed[0]}, killed at {resumed[-1]}")
    # A checkpoint follows each execution: one execution may be lost, and no more.
    assert resumed[0] >= steps[-1]
    assert not (killed / "model.keras").exists()

    train(killed, steps_per_execution)
    train(whole, steps_per_execution)

    ours, theirs = final_state(killed), final_state(whole)
    assert ours.keys() == theirs.keys()
    assert not any(name.startswith("metrics") for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    for name in ("history.csv", f"samples/epoch-{EPOCHS:04d}.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    history = (whole / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in history[1:]] == list("123456")
    # Nothing half-written is left.
    left = {p.name for p in killed.rglob("*") if p.name.startswith(".")}
    assert all(name == ".lock" or name.endswith(".tmp") for name in left)
