"""Forked processes: fresh enough to choose devices, and their failures are shown."""

import os
import signal
import sys
import time

import pytest
import tensorflow as tf

import processes


def devices_and_environment(name):
    return len(tf.config.list_logical_devices("CPU")), os.environ.get(name), os.getcwd()


def fail():
    print("before the error")
    sys.stderr.flush()
    raise KeyError("no such task")


def wait_for_ever():
    print("waiting", flush=True)
    time.sleep(1000)


def test_a_process_chooses_its_devices_environment_and_folder(tmp_path, monkeypatch):
    """TensorFlow's runtime has not started after the server's imports."""
    monkeypatch.setenv("KGEN_TEST_INHERITED", "yes")
    inherited = processes.run(devices_and_environment, "KGEN_TEST_INHERITED", devices=3)
    assert inherited == (3, "yes", os.getcwd())
    given = processes.run(
        devices_and_environment,
        "KGEN_TEST",
        environ={"KGEN_TEST": "1"},
        folder=tmp_path,
    )
    assert given == (1, "1", str(tmp_path))


def test_a_failure_shows_the_output_and_the_traceback():
    with pytest.raises(AssertionError, match="exit code 1") as caught:
        processes.run(fail)
    assert "before the error" in str(caught.value)
    assert "KeyError: 'no such task'" in str(caught.value)


def test_one_failure_ends_the_wait_for_all():
    with (
        processes.Process(wait_for_ever) as waiting,
        processes.Process(fail) as failing,
        pytest.raises(AssertionError, match="no such task"),
    ):
        processes.wait_together([waiting, failing])
    with (
        processes.Process(wait_for_ever) as waiting,
        pytest.raises(AssertionError, match="wait_for_ever hangs"),
    ):
        processes.wait_together([waiting], limit_seconds=0.1)


def test_a_killed_process_has_the_exit_code_of_its_signal():
    with processes.Process(wait_for_ever) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
