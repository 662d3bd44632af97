"""`kgen serve RUN...`: answers requests from exported models."""

import os
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
    help="Use kgen's own server also where TensorFlow Serving is installed.",
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

    By tensorflow_model_server if it is installed, else by kgen's own server (pip
    install kgen[serve]), from the SavedModel and nothing else. A version that is
    exported meanwhile takes over, and no request is lost.
    """
    server = None if embedded or labels else shutil.which("tensorflow_model_server")
    if server and len(runs) == 1:
        _serve_by_tensorflow(server, runs[0], host, port)
        return
    try:
        import uvicorn
    except ImportError as error:
        raise click.UsageError(
            "The server needs packages that are not installed: pip install kgen[serve]"
        ) from error
    load_tensorflow()
    from kgen.serving import ServedModel, make_application

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
        log_level="warning",
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


def _serve_by_tensorflow(server: str, run: Path, host: str, port: int) -> None:
    """Starts the real server on the run's folder, and ends with it."""
    from kgen.export.tensorflow_serving import model_name

    arguments = [
        f"--model_name={model_name(run)}",
        f"--model_base_path={run.resolve()}",
        f"--rest_api_port={port}",
        "--port=0",
    ]
    click.echo(f"{server} {' '.join(arguments)}")
    code = subprocess.call([server, *arguments], env=os.environ)
    if code:
        raise click.ClickException(f"{server} ended with exit status {code}.")
