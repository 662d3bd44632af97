"""Choice between a run's ONNX file and Keras."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from kgen.recipes import read_record

runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "onnx", "keras"]),
    default="auto",
    show_default=True,
    help="auto: the run's ONNX file where it suffices, without TensorFlow and in less "
    "than a second, and else Keras.",
)


def find_session(
    run: Path, runtime: str, inputs: Iterable[str], suffices: bool = True
) -> Any:
    """Return the session of a run's ONNX file, or None for Keras.

    Args:
        run: Folder of the run.
        runtime: Value of --runtime.
        inputs: Names of the inputs.
        suffices: Whether the file can do what is asked, beside its inputs.

    Raises:
        click.UsageError: --runtime is onnx, and no file suffices.
    """
    if runtime == "keras":
        return None
    from kgen.export import session_of_run

    name = read_record(run)["recipe"]
    session = session_of_run(run, name, inputs) if suffices else None
    if session is None and runtime == "onnx":
        raise click.UsageError(
            f"--runtime onnx: {run} has no ONNX file that is as new as its model and "
            f"can do what the options ask for. Write one, kgen export {run} --format "
            "onnx, or leave options out."
        )
    return session
