"""Checkpoints: their content, and when they are written."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from kgen import training
from kgen.data import Pipeline
from kgen.models import GAN, GPT, VAE, RecVAE
from kgen.training.checkpoints import state_variables

IMAGES = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 1)).astype(np.uint8)


def make_pipeline():
    def read(rows, epoch, places):
        return {"images": tf.gather(IMAGES, rows)}

    return Pipeline(40, read, batch_size=8, seed=1, shuffle=True)


def make_model(latent_dim=2, learning_rate=1e-2):
    keras.utils.set_random_seed(0)
    model = VAE(image_shape=(4, 4, 1), latent_dim=latent_dim, hidden_units=(4,))
    model.compile(keras.optimizers.Adam(learning_rate))
    return model


def train(folder, *callbacks, epochs=2, **options):
    """Trains from the checkpoint in the folder; returns the model."""
    model = make_model()
    checkpointer = training.Checkpointer(folder / "state.npz", **options)
    checkpointer.restore(model)
    history = training.History(folder / "history.csv")
    with checkpointer.saving_on_interrupt():
        training.fit(
            model,
            make_pipeline(),
            epochs=epochs,
            callbacks=[history, *callbacks, checkpointer],
        )
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the model of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_nothing_is_restored_from_nothing(tmp_path):
    assert not training.Checkpointer(tmp_path / "state.npz").restore(make_model())


def test_ctrl_c_saves_the_step_and_a_resumed_run_ends_as_if_never_stopped(
    tmp_path, whole
):
    folder, expected = whole

    def interrupt(batch, logs):
        if batch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    press = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    # 60 seconds between checkpoints: this one is there because of the interrupt.
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, press)
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = make_model()
    training.Checkpointer(tmp_path / "state.npz").restore(stopped)
    assert int(stopped.step.numpy()) == 3

    received = train(tmp_path)
    for ours, theirs in zip(
        received.get_weights() + [v.numpy() for v in received.optimizer.variables],
        expected.get_weights() + [v.numpy() for v in expected.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    histories = [(one / "history.csv").read_bytes() for one in (folder, tmp_path)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("stop", ["kill", "Ctrl-C"])
def test_a_run_stopped_as_an_epoch_ends_has_every_row(tmp_path, whole, stop):
    """After the last of five batches, and before the epoch is recorded."""
    folder, _ = whole

    def kill(epoch, logs):
        raise RuntimeError("killed")

    def interrupt(batch, logs):
        if batch == 4:
            os.kill(os.getpid(), signal.SIGINT)

    stopped, options = {
        "kill": (RuntimeError, {"on_epoch_end": kill}),
        "Ctrl-C": (KeyboardInterrupt, {"on_train_batch_end": interrupt}),
    }[stop]
    at_the_end = keras.callbacks.LambdaCallback(**options)
    with pytest.raises(stopped):
        train(tmp_path, at_the_end, every_seconds=0.0)
    train(tmp_path)
    history = (tmp_path / "history.csv").read_text()
    assert history == (folder / "history.csv").read_text()
    with (
        np.load(folder / "state.npz") as theirs,
        np.load(tmp_path / "state.npz") as ours,
    ):
        for key in theirs.files:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_the_second_ctrl_c_interrupts_at_once(tmp_path):
    checkpointer = training.Checkpointer(tmp_path / "state.npz")
    reached = []
    with pytest.raises(KeyboardInterrupt), checkpointer.saving_on_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


def test_a_finished_run_trains_no_further(tmp_path):
    finished = train(tmp_path, epochs=1)
    again = train(tmp_path, epochs=1)
    assert int(again.step.numpy()) == int(finished.step.numpy()) == 5
    for ours, theirs in zip(again.get_weights(), finished.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, range(1, 11)), (1e9, [10])])
def test_a_checkpoint_is_written_when_it_is_due_and_at_the_end(
    tmp_path, seconds, steps
):
    saved = []

    class Noting(training.Checkpointer):
        def save(self, metric_values):
            super().save(metric_values)
            saved.append(int(self.model.step.numpy()))

    checkpointer = Noting(tmp_path / "state.npz", every_seconds=seconds)
    training.fit(make_model(), make_pipeline(), epochs=2, callbacks=[checkpointer])
    assert sorted(set(saved)) == list(steps)


def test_only_the_chief_writes(tmp_path):
    train(tmp_path, write=False, every_seconds=0.0)
    assert not (tmp_path / "state.npz").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    other = make_model(latent_dim=3)
    before = other.get_weights()
    rule = "another model or optimizer.*different are decoder/.*--overwrite"
    with pytest.raises(ValueError, match=rule):
        training.Checkpointer(tmp_path / "state.npz").restore(other)
    for ours, theirs in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GAN(image_shape=(8, 8, 1), latent_dim=2, base_channels=2),
        lambda: GPT(vocab_size=5, context=4, num_layers=2, num_heads=1, hidden_dim=4),
        lambda: RecVAE(item_ids=range(5), hidden_dim=3, latent_dim=2),
    ],
)
def test_variables_are_named_by_paths_that_all_instances_share(make):
    first, second = make(), make()
    for model in (first, second):
        model.compile()
    paths = state_variables(first)
    assert list(paths) == list(state_variables(second))
    variables = {id(one) for one in paths.values()}
    optimizers = [one for each in first.optimizers for one in each.variables]
    assert variables == {id(one) for one in (*first.weights, *optimizers)}
    assert len(paths) == len(variables) > 20


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    model = train(tmp_path, epochs=1)
    before = (tmp_path / "state.npz").read_bytes()
    checkpointer = training.Checkpointer(tmp_path / "state.npz")
    checkpointer.set_model(model)
    variable = model.decoder.trainable_variables[0]
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(FloatingPointError, match="decoder/.* with NaN.*step 5"):
        checkpointer.save([])
    assert (tmp_path / "state.npz").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"state.npz", "history.csv"}


def test_a_checkpoint_that_was_cut_is_named(tmp_path):
    train(tmp_path, epochs=1)
    file = tmp_path / "state.npz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"state\.npz, which is damaged.*--overwrite"):
        training.Checkpointer(file).restore(make_model())
