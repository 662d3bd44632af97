"""The section "Several machines" of docs/devices.md, with two processes here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from code_blocks import ROOT
from kgen_cli.fit import recipe_command

PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Several machines\n")[2].partition("\n## ")[0]
LIMIT_SECONDS = 240
START = "import sys; from kgen_cli.main import main; main(sys.argv[1:])"


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


class Worker:
    """The command typed into one of the two terminals."""

    def __init__(self, terminal, ports, folder, output):
        config = re.search(r"^export TF_CONFIG='(.*)'$", terminal, re.MULTILINE)[1]
        for stated, port in zip(["12345", "12346"], ports, strict=True):
            config = config.replace(stated, str(port))
        words = terminal.splitlines()[-1].split()
        assert words[0] == "kgen"
        self.output = output
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CONFIG": config,
        }
        del environment["TF_CPP_MIN_LOG_LEVEL"]  # set by conftest.py
        with open(output, "w") as opened:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, *words[1:]],
                cwd=folder,
                env=environment,
                stdout=opened,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self):
        return self.output.read_text(errors="replace")

    def wait_for(self, text):
        deadline = time.monotonic() + LIMIT_SECONDS
        while text not in self.text:
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"no {text!r} in:\n{self.text}"
            time.sleep(0.05)

    def end(self, seconds=LIMIT_SECONDS):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs, after:\n{self.text}") from None


@pytest.fixture
def start(tmp_path):
    """Starts the two workers of the page; none outlives the test."""
    started = []

    def start_both(folders):
        with socket.socket() as first, socket.socket() as second:
            for listening in (first, second):  # both open, so that the ports differ
                listening.bind(("localhost", 0))
            ports = [opened.getsockname()[1] for opened in (first, second)]
        for terminal, folder in zip(blocks("bash"), folders, strict=True):
            folder.mkdir(exist_ok=True)
            output = tmp_path / f"output-{len(started)}.txt"
            started.append(Worker(terminal, ports, folder, output))
        return started[-2:]

    yield start_both
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def state(folder):
    with np.load(folder / "saved_models" / "workers" / "checkpoint/state.npz") as saved:
        return dict(saved)


LOST = "A worker has stopped or cannot be reached"


@pytest.mark.machines
def test_two_workers_train_and_after_a_kill_end_as_if_never_stopped(start, tmp_path):
    whole, killed, elsewhere = (tmp_path / name for name in ("whole", "killed", "else"))

    # As the page shows it. The second worker, in a folder of its own, writes nothing.
    chief, other = start([whole, elsewhere])
    assert (chief.end(), other.end()) == (0, 0), chief.text + other.text
    shown_by_chief, shown_by_other = blocks("text")
    for line in shown_by_chief.splitlines():
        # Without the losses, whose last digits are the machine's.
        assert line.partition("  loss")[0] in chief.text, chief.text
    assert other.text == shown_by_other
    assert list(elsewhere.iterdir()) == []
    assert (whole / "saved_models" / "workers" / "vae.onnx").is_file()

    # Killed in the second of three epochs: the chief ends, too.
    chief, other = start([killed, killed])
    chief.wait_for("epoch 1/3")
    other.process.send_signal(signal.SIGKILL)
    assert chief.end(60) == 1
    assert LOST in chief.text.splitlines()[-1]
    assert "worker 1 is gone" in chief.text or "a lost connection" in chief.text

    # The same commands again, as Kubernetes does it. SIGTERM, with which it ends a pod,
    # ends the chief before it has exported; the other has waited for it.
    chief, other = start([killed, killed])
    chief.wait_for("saving, measuring and exporting")
    assert re.search(r"^resumed at step (44|88) of 132$", chief.text, re.MULTILINE)
    chief.process.send_signal(signal.SIGTERM)
    assert chief.end(60) == -signal.SIGTERM
    assert other.end(60) == 1
    assert LOST in other.text.splitlines()[-1]

    expected, received = state(whole), state(killed)
    assert expected.keys() == received.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(received[name], value, err_msg=name)
    histories = [
        (folder / "saved_models" / "workers" / "history.csv").read_bytes()
        for folder in (whole, killed)
    ]
    assert histories[0] == histories[1]
    assert histories[0].count(b"\n") == 4


def test_the_commands_of_the_two_terminals_are_the_same():
    first, second = blocks("bash")
    assert first.splitlines()[-1] == second.splitlines()[-1]
    assert first.replace('"index": 0', '"index": 1') == second
    json.loads(re.search("'(.*)'", first)[1])


def test_the_command_of_the_manifest_can_be_typed():
    [manifest] = blocks("yaml")
    words = re.search(r"command: \[(.*)\]", manifest)[1].split(", ")
    assert words[:2] == ["kgen", "fit"]
    context = recipe_command(words[2]).make_context("fit", words[3:])
    assert context.params["strategy"] == "multiworker"
    assert context.params["resume"]
    mounted = re.search(r"mountPath: ([^}\s]*)", manifest)[1]
    assert context.params["folder"] == mounted


def test_the_manifest_is_yaml():
    yaml = pytest.importorskip("yaml", reason="PyYAML is no dependency of kgen")
    [manifest] = blocks("yaml")
    job = yaml.safe_load(manifest)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    chief, worker = (job["spec"]["tfReplicaSpecs"][k] for k in ("Chief", "Worker"))
    assert chief["replicas"] == 1
    assert chief["template"] == worker["template"]
    pod = worker["template"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["tensorflow"]
    assert pod["volumes"][0]["name"] == pod["containers"][0]["volumeMounts"][0]["name"]
