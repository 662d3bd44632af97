"""`kgen serve`: the choice of the server, its command, and usage that is refused."""

import os
import shutil
import socket
import subprocess
import sys
import types

import pytest
import uvicorn

from free_ports import free_port
from kgen.export.tensorflow_serving import IMAGE
from kgen_cli.main import run
from served_models import export_model

SERVER, DOCKER = "tensorflow_model_server", "docker"


@pytest.fixture
def run_folder(tmp_path):
    """A folder with one version, which holds no model."""
    folder = tmp_path / "my run"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "saved_model.pb").touch()
    return folder


class Replaced(BaseException):
    """This process would be replaced by a command."""


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The programs that are found, each with the exit status of `docker info`."""
    programs = {}

    def execute(program, command):
        raise Replaced(command)

    def finish(command, **options):
        assert command == [DOCKER, "info"]
        return types.SimpleNamespace(returncode=programs[DOCKER])

    monkeypatch.setattr(
        shutil, "which", lambda name: name if name in programs else None
    )
    monkeypatch.setattr(subprocess, "run", finish)
    monkeypatch.setattr(os, "execvp", execute)
    return programs


@pytest.fixture
def served(monkeypatch):
    """The configurations of kgen's own servers, and the addresses they listen on."""
    found = []

    def serve(server, sockets):
        found.append((server.config, *(one.getsockname()[:2] for one in sockets)))

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    return found


def test_tensorflow_serving_is_started_on_the_folder(run_folder, installed, capsys):
    installed |= {SERVER: 0, DOCKER: 0}
    with pytest.raises(Replaced) as replaced:
        run(["serve", str(run_folder), "--port", "8555"])
    assert replaced.value.args[0] == [
        SERVER,
        "--model_name=my_run",
        f"--model_base_path={run_folder}",
        "--rest_api_port=8555",
        "--port=0",
    ]
    assert "--embedded" in capsys.readouterr().out


def test_docker_is_started_on_the_folder(run_folder, installed):
    installed[DOCKER] = 0
    with pytest.raises(Replaced) as replaced:
        run(["serve", str(run_folder), "--host", "::1"])
    assert replaced.value.args[0] == [
        *(DOCKER, "run", "--rm", "--publish", "[::1]:8501:8501", "--mount"),
        f"type=bind,source={run_folder},target=/models/my_run,readonly",
        *("--env", "MODEL_NAME=my_run", IMAGE),
    ]


def test_a_real_server_takes_the_place_of_the_process(run_folder, monkeypatch):
    """And TensorFlow is not imported before."""
    monkeypatch.undo()
    program = run_folder.parent / SERVER
    program.write_text('#!/bin/sh\necho "<$2>"; exit 7\n')
    program.chmod(0o755)
    poison = run_folder.parent / "tensorflow.py"
    poison.write_text("raise ImportError('too early')")
    done = subprocess.run(
        [sys.executable, "-c", "from kgen_cli.main import main; main()"]
        + ["serve", run_folder],
        env=os.environ | {key: str(program.parent) for key in ("PATH", "PYTHONPATH")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[-1] == f"<--model_base_path={run_folder}>"


@pytest.mark.parametrize(
    ("programs", "options"),
    [
        ({}, []),
        ({DOCKER: 1}, []),
        ({SERVER: 0, DOCKER: 0}, ["--embedded"]),
        ({SERVER: 0, DOCKER: 0}, ["--label", "stable=1"]),
    ],
    ids=["nothing installed", "a docker that does not run", "--embedded", "--label"],
)
def test_kgens_own_server(tmp_path, installed, served, capsys, programs, options):
    installed |= programs
    export_model(tmp_path / "shift", 1)
    port = free_port()
    assert run(["serve", str(tmp_path / "shift"), "--port", str(port), *options]) == 0
    [(config, address)] = served
    assert address == ("127.0.0.1", port)
    assert config.limit_concurrency == 1024
    assert f"shift: version 1, http://127.0.0.1:{port}" in capsys.readouterr().out


def test_a_port_that_is_taken(run_folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", str(run_folder), "--port", port]) == 1
    message = f"127.0.0.1:{port}: Address already in use. Choose another"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["my run", "my run"], 2, "two of my run, my run have the same"),
        (["my run", "other", "--label", "stable=1"], 2, "--label needs a single RUN"),
        (["my run", "--label", "stable"], 2, "must be NAME=VERSION"),
        (["my run", "--label", "stable=2"], 1, "in my run: 1. Received: stable=2"),
        (["empty"], 1, "must have a version, a folder named by a number"),
        (["my run"], 1, "has no checksums"),
    ],
)
def test_what_cannot_be_served(
    run_folder, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(run_folder.parent)
    shutil.copytree(run_folder, "other")
    os.makedirs("empty")
    with open("empty/recipe.json", "w") as file:
        file.write("{}")
    assert run(["serve", *arguments, "--port", str(free_port())]) == code
    assert message in capsys.readouterr().err.replace("\n", " ")
