"""`kgen serve RUN...`: serves exported models over HTTP."""

import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import click

from .options import RunFolder, debug_option
from .startup import load_tensorflow


class VersionsFolder(RunFolder):
    """A run, or any folder of versions that `to_saved_model` made."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Finds the folder."""
        if any(Path(value).glob("*/saved_model.pb")):
            return Path(value)
        return super().convert(value, param, ctx)


@click.command("serve")
@click.argument("runs", type=VersionsFolder(), nargs=-1, required=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VERSION",
    help="A version that stays in memory under this name; for a single RUN.",
)
@click.option(
    "--embedded",
    is_flag=True,
    help="Use kgen's own server also where TensorFlow Serving or Docker is installed.",
)
@debug_option
def command(
    runs: tuple[Path, ...],
    port: int,
    host: str,
    labels: tuple[str, ...],
    embedded: bool,
) -> None:
    """Serve the exports of RUN... over TensorFlow Serving's REST API.

    A single RUN is served by tensorflow_model_server if it is installed, or by Docker
    if it runs; otherwise by kgen's own server (the extra `serve`), which needs
    the SavedModel alone. A new version takes over as soon as it is exported, without
    losing a request. Only kgen's own server has a page at / and OpenAI's completions.
    """
    from kgen.export.tensorflow_serving import check_versions, model_name

    by_label = dict(_label(text) for text in labels)
    if labels and len(runs) > 1:
        raise click.UsageError("--label needs a single RUN.")
    if len({model_name(run) for run in runs}) < len(runs):
        raise click.UsageError(
            "Runs are served by the names of their folders, and two of "
            f"{', '.join(map(str, runs))} have the same. Serve them on two ports, or "
            "rename one."
        )
    for run in runs:
        check_versions(run, by_label)
    if len(runs) == 1 and not embedded and not labels:
        server = _tensorflow_serving(runs[0], host, port)
        if server:
            click.echo(f"{shlex.join(server)}\n(kgen's own server: --embedded)")
            os.execvp(server[0], server)  # It receives the signals from here on.
    try:
        import uvicorn
    except ImportError as error:
        raise click.UsageError(
            "The server needs more packages: pip install '.[serve]' in kgen's sources"
        ) from error
    with _bound_socket(host, port) as listener:
        load_tensorflow()
        from kgen.serving import BoundedProtocol, ServedModel, make_application

        models = [ServedModel(run, by_label) for run in runs]
        for model in models:
            versions = ", ".join(map(str, sorted(model.loaded.versions)))
            click.echo(
                f"{model.name}: version {versions}, http://{host}:{port}/v1/models/"
                f"{model.name}"
            )
            for number, reason in model.failed.items():
                click.echo(f"{model.name}: version {number} is not loaded: {reason}")
        config = uvicorn.Config(
            make_application(models, report=click.echo),
            http=BoundedProtocol,
            log_config=None,  # Uvicorn's would close the handlers of other loggers.
            log_level="error",
            timeout_graceful_shutdown=60,
            limit_concurrency=1024,
        )
        uvicorn.Server(config).run([listener])


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket on an address: bound before seconds are spent on loading the models."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise click.ClickException(
            f"Nothing can be served on {host}:{port}: {error.strerror}. Choose another "
            "--port, or --host."
        ) from error
    return made


def _label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    if not name or not version.isdecimal():
        raise click.UsageError(
            f"--label must be NAME=VERSION, such as stable=1. Received: {text}"
        )
    return name, int(version)


def _tensorflow_serving(run: Path, host: str, port: int) -> list[str] | None:
    """The command that starts TensorFlow Serving on a run; None: not installed."""
    server, docker = shutil.which("tensorflow_model_server"), shutil.which("docker")
    if server is None and (docker is None or not _answers([docker, "info"])):
        return None
    from kgen.export.tensorflow_serving import IMAGE, model_name

    name, folder = model_name(run), run.resolve()
    if server:
        where = [f"--model_name={name}", f"--model_base_path={folder}"]
        return [server, *where, f"--rest_api_port={port}", "--port=0"]
    address = f"[{host}]" if ":" in host else host
    mount = f"type=bind,source={folder},target=/models/{name},readonly"
    return [
        *(str(docker), "run", "--rm", "--publish", f"{address}:{port}:8501"),
        *("--mount", mount, "--env", f"MODEL_NAME={name}", IMAGE),
    ]


def _answers(command: list[str]) -> bool:
    """Whether a program runs and exits with status 0."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
