"""`kgen serve RUN...`: answers requests from exported models."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import click

from .options import RunFolder, debug_option
from .startup import load_tensorflow


@click.command("serve")
@click.argument("runs", type=RunFolder(), nargs=-1, required=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VERSION",
    help="A version that stays in memory, and is found under this name; of one RUN.",
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

    One RUN by tensorflow_model_server if it is installed, or by Docker if it runs;
    else by kgen's own server (pip install kgen[serve]), from the SavedModel and nothing
    else. A version that is exported meanwhile takes over, and no request is lost. Only
    kgen's own has a page at / and OpenAI's completions.
    """
    real = None
    if len(runs) == 1 and not embedded and not labels:
        real = _real_server(runs[0], host, port)
    if real:
        click.echo(f"{shlex.join(real)}\n(kgen's own server: --embedded)")
        os.execvp(real[0], real)  # Signals are its own from here on.
    try:
        import uvicorn
    except ImportError as error:
        raise click.UsageError(
            "The server needs packages that are not installed: pip install kgen[serve]"
        ) from error
    load_tensorflow()
    from kgen.serving import BoundedProtocol, ServedModel, make_application

    if labels and len(runs) > 1:
        raise click.UsageError("--label is of one RUN.")
    by_label = dict(_label(text) for text in labels)
    models = [ServedModel(run, by_label) for run in runs]
    names = [model.name for model in models]
    if len({*names}) < len(names):
        raise click.UsageError(f"Two runs have the same name: {', '.join(names)}.")
    for model in models:
        versions = ", ".join(map(str, sorted(model.versions)))
        click.echo(
            f"{model.name}: version {versions}, http://{host}:{port}/v1/models/"
            f"{model.name}"
        )
    uvicorn.run(
        make_application(models, report=click.echo),
        host=host,
        port=port,
        http=BoundedProtocol,
        log_level="error",
        timeout_graceful_shutdown=60,
        limit_concurrency=1024,
    )


def _label(text: str) -> tuple[str, int]:
    name, _, version = text.partition("=")
    if not name or not version.isdecimal():
        raise click.UsageError(
            f"--label is written NAME=VERSION, such as stable=1. Received: {text}"
        )
    return name, int(version)


def _real_server(run: Path, host: str, port: int) -> list[str] | None:
    """The command that starts TensorFlow Serving on a run's folder; None: it cannot."""
    from kgen.export.tensorflow_serving import IMAGE, model_name

    name, folder = model_name(run), run.resolve()
    server = shutil.which("tensorflow_model_server")
    if server:
        where = [f"--model_name={name}", f"--model_base_path={folder}"]
        return [server, *where, f"--rest_api_port={port}", "--port=0"]
    docker = shutil.which("docker")
    if docker is None or not _answers([docker, "info"]):
        return None
    address = f"[{host}]" if ":" in host else host
    mount = f"type=bind,source={folder},target=/models/{name},readonly"
    return [
        *(docker, "run", "--rm", "--publish", f"{address}:{port}:8501"),
        *("--mount", mount, "--env", f"MODEL_NAME={name}", IMAGE),
    ]


def _answers(command: list[str]) -> bool:
    """Whether a program is there, and says that all is well."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
