"""`kgen serve` where there is a real server: programs that write down what they get."""

import os
import socket
import subprocess
import sys

import pytest

from free_ports import free_port
from kgen.export.tensorflow_serving import IMAGE

MAIN = "from kgen_cli.main import main; main()"


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "my run"
    (folder / "1").mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    return folder


def serve(run_folder, programs, *options):
    """What `kgen serve` says with only these programs on the PATH, by their scripts."""
    path = run_folder.parent / "bin"
    path.mkdir()
    for name, script in programs.items():
        (path / name).write_text(f"#!/bin/sh\n{script}\n")
        (path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "serve", str(run_folder), *options],
        env=os.environ | {"PATH": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done


SAY = 'for word in "$@"; do echo "<$word>"; done; exit 7'


def test_tensorflow_serving_is_started_on_the_folder(run_folder):
    done = serve(run_folder, {"tensorflow_model_server": SAY}, "--port", "8555")
    assert done.returncode == 7
    assert [line for line in done.stdout.splitlines() if line[0] == "<"] == [
        "<--model_name=my_run>",
        f"<--model_base_path={run_folder}>",
        "<--rest_api_port=8555>",
        "<--port=0>",
    ]
    assert "--embedded" in done.stdout


def test_docker_is_started_on_the_folder(run_folder):
    script = f'[ "$1" = info ] && exit 0\n{SAY}'
    done = serve(run_folder, {"docker": script}, "--host", "::1")
    assert done.returncode == 7
    assert [line[1:-1] for line in done.stdout.splitlines() if line[0] == "<"] == [
        *("run", "--rm", "--publish", "[::1]:8501:8501", "--mount"),
        f"type=bind,source={run_folder},target=/models/my_run,readonly",
        *("--env", "MODEL_NAME=my_run", IMAGE),
    ]


@pytest.mark.parametrize(
    ("script", "options"),
    [("exit 1", []), (f'[ "$1" = info ] && exit 0\n{SAY}', ["--embedded"])],
)
def test_a_docker_that_does_not_run_or_is_not_wanted(run_folder, script, options):
    done = serve(run_folder, {"docker": script}, *options)
    # kgen's own server: it says that there is no version in the folder.
    assert done.returncode == 1
    assert "has a version, a folder named by a number" in done.stderr


def test_a_port_that_is_taken(run_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = serve(run_folder, {}, "--port", port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use. Choose another" in done.stderr


def test_any_folder_of_versions_will_do(run_folder):
    (run_folder / "recipe.json").unlink()
    (run_folder / "1" / "saved_model.pb").touch()
    done = serve(run_folder, {}, "--port", str(free_port()))
    assert done.returncode == 1
    assert "has no sums to be checked by" in done.stderr


def test_two_runs_of_one_name(run_folder):
    again = str(run_folder)
    done = serve(run_folder, {}, again, "--port", str(free_port()))
    assert done.returncode == 2 and "rename one" in done.stderr
