"""`kgen export RUN`: writes files that run without kgen."""

from pathlib import Path

import click

from .options import RunFolder, debug_option
from .startup import load_tensorflow


@click.command("export")
@click.argument("run", type=RunFolder())
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["saved_model", "onnx", "all"]),
    default="all",
    show_default=True,
    help="saved_model: a new version in the run's folder, as TF Serving reads it; "
    "onnx: a file for each signature, such as vae.onnx and vae.encode.onnx.",
)
@debug_option
def command(run: Path, file_format: str) -> None:
    """Export RUN, and compare the exported files with the model.

    Every file is loaded again and run on batches of 1, 3 and 64; what differs from
    the Keras model by more than its tolerance is deleted, and the command fails.
    """
    load_tensorflow()
    import kgen
    from kgen.export import to_onnx, to_saved_model
    from kgen.recipes import recipe_of_run

    model = kgen.load(run)
    if file_format in ("saved_model", "all"):
        click.echo(to_saved_model(model, run))
    if file_format in ("onnx", "all"):
        names = [s.name for s in model.signatures() if "onnx" in s.runtimes]
        for index, name in enumerate(names):
            # The first signature is what the model is for: it gets the plain name.
            suffix = f".{name}.onnx" if index else ".onnx"
            path = run / f"{recipe_of_run(run).recipe_name}{suffix}"
            click.echo(to_onnx(model, path, signature=name))
