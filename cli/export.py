"""`kgen export RUN`: writes files that run without kgen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from kgen import training
from kgen.recipes import read_record

from .options import RunFolder, counted, debug_option
from .startup import load_tensorflow

# Layout and type of the images of an ONNX file where nothing else is asked for.
USUAL = {"layout": "nhwc", "dtype": "float32"}


@click.command("export")
@click.argument("run", type=RunFolder(trained=True))
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["saved_model", "onnx", "triton", "all"]),
    default="all",
    show_default=True,
    help="saved_model: a new version in the run's folder, as TF Serving reads it; "
    "onnx: a file for each signature, such as vae.onnx and vae.encode.onnx; triton: "
    "these files in a model repository, the folder triton; all: the first two.",
)
@click.option(
    "--layout",
    type=click.Choice(["nhwc", "nchw"]),
    default=USUAL["layout"],
    show_default=True,
    help="Of the images of ONNX files: channels last, or first.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "uint8"]),
    default=USUAL["dtype"],
    show_default=True,
    help="Of the images of ONNX files: in [0, 1], or whole numbers up to 255.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; check that the exports are, byte by byte, what was written.",
)
@debug_option
def command(run: Path, file_format: str, check: bool, **images: str) -> None:
    """Export RUN, and compare the exported files with the model.

    Every file is loaded again and run on batches of 1, 3 and 64; what differs from
    the Keras model by more than its tolerance is deleted, and the command fails.
    """
    is_other = images != USUAL
    if is_other and file_format == "saved_model":
        raise click.UsageError("--layout and --dtype are of ONNX files alone.")
    if check:
        if is_other or file_format != "all":
            raise click.UsageError(
                "--check checks all exports, and takes no --format, --layout or "
                "--dtype."
            )
        _check(run)
        return
    signatures = read_record(run)["signatures"].values()
    if is_other and not any("image" in one["outputs"].values() for one in signatures):
        raise click.UsageError(
            f"The model of {run} has no images, and takes no --layout or --dtype."
        )
    # One writer: a fit may be replacing the run. And a killed export's files go.
    with training.RunFolder(run).claim(resume=True, report=click.echo):
        load_tensorflow()
        import kgen
        from kgen.export import to_saved_model, to_triton
        from kgen.recipes import export_metadata

        model, about = kgen.load(run), export_metadata(run)
        if file_format in ("saved_model", "all") and not is_other:
            export = to_saved_model(model, run, metadata=about)
            click.echo(export)
            click.echo("\nServed by `docker compose up` in this folder, it answers:")
            click.echo(f"{export.request}\n")
        if file_format != "saved_model":
            for path in _write_onnx(model, run, about, images):
                if file_format == "triton":
                    click.echo(f"  {to_triton(path, run / 'triton')}")


def _write_onnx(
    model: Any, run: Path, about: dict[str, str], images: dict[str, str]
) -> Iterator[Path]:
    """Writes a file for each signature, and yields its path."""
    from kgen.export import to_onnx
    from kgen.export.image_files import image_inputs

    other = [] if images == USUAL else [images["layout"], images["dtype"]]
    signatures = [one for one in model.signatures() if "onnx" in one.runtimes]
    for index, signature in enumerate(signatures):
        has_images = image_inputs(signature) or "image" in signature.outputs.values()
        if other and not has_images:
            continue
        # The first signature is what the model is for: it gets the plain name.
        parts = [about["recipe"], *([signature.name] if index else []), *other]
        path = run / f"{'.'.join(parts)}.onnx"
        click.echo(to_onnx(model, path, signature.name, metadata=about, **images))
        yield path


def _check(run: Path) -> None:
    """Prints each export whose files are what was written; fails at the first other."""
    from kgen.export import check_sums

    versions = sorted(path.parent for path in run.glob("*/saved_model.pb"))
    exports = [*versions, *sorted(run.glob("*.onnx"))]
    if not exports:
        raise click.UsageError(f"{run} holds no exports yet: kgen export {run.name}.")
    for path in exports:
        click.echo(f"{path}: {counted(check_sums(path), 'file')} as written")
