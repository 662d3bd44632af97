"""A run that is killed, twice, ends as one that never stopped: bit for bit."""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("killed_run.py")
STEPS_PER_EPOCH, EPOCHS = 11, 6
LIMIT_SECONDS = 240


def run_and_kill(folder: Path, steps_per_execution: int, kill_after: int) -> list[int]:
    """Runs until a step is reached and kills the process; returns the steps it took."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), str(folder), str(steps_per_execution)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "CUDA_VISIBLE_DEVICES": "-1",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(LIMIT_SECONDS, process.kill)
    timer.start()
    steps = []
    try:
        for line in process.stdout:
            steps.append(int(line))
            if steps[-1] >= kill_after:
                break
    finally:
        timer.cancel()
        process.kill()  # SIGKILL
        process.wait()
        process.stdout.close()
    assert process.returncode == -9
    return steps


def final_state(folder: Path) -> dict[str, np.ndarray]:
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
    steps = run_and_kill(killed, steps_per_execution, first)
    print(f"killed at {steps[-1]}, with {steps_per_execution} steps per execution")
    assert steps[0] <= steps_per_execution
    resumed = run_and_kill(killed, steps_per_execution, second)
    print(f"resumed at {resumed[0]}, killed at {resumed[-1]}")
    # A checkpoint follows each execution: one execution may be lost, and no more.
    assert resumed[0] >= steps[-1]
    assert not (killed / "model.keras").exists()

    # The rest runs here: a process of its own for each costs as much again.
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from killed_run import run
    finally:
        sys.path.pop(0)
    run(killed, steps_per_execution)
    run(whole, steps_per_execution)

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
    assert all(name.endswith(".tmp") for name in left)
