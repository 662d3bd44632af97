"""`kgen generate RUN`: draws images from a trained model."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import click

from .options import IntegerRanges, RunFolder, debug_option, is_run
from .startup import load_tensorflow

# Row i depends on its own seed alone, so the batch size changes speed and memory only.
BATCH_SIZE = 256


@click.command("generate")
@click.argument("run", type=RunFolder())
@click.option(
    "--seeds",
    type=IntegerRanges(),
    default="0-63",
    show_default=True,
    help="One image for each; the same seed gives the same image.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="X.png: one picture with all images; X.npy: their values, float32 in [0, 1]; "
    "anything else: a folder, with one PNG for each seed.",
)
@click.option(
    "--labels",
    type=IntegerRanges(),
    help="The classes, for a conditional model: one for all seeds, or several that the "
    "seeds take in turn; default: all of them in turn.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=100),
    help="How far the noise spreads; the model's default is 1.",
)
@debug_option
def command(
    run: Path,
    seeds: tuple[int, ...],
    out: Path,
    labels: tuple[int, ...] | None,
    temperature: float | None,
) -> None:
    """Draw images from RUN, one for each seed."""
    _check_destination(out)

    load_tensorflow()
    import numpy as np

    import kgen

    model = kgen.load(run)
    if not hasattr(model, "generate"):
        raise click.UsageError(
            f"A {type(model).__name__} generates nothing from seeds. It recommends: "
            "kgen recommend."
        )
    if labels is None and getattr(model, "num_classes", None):
        labels = tuple(range(model.num_classes))
    if labels is not None:
        labels = tuple(itertools.islice(itertools.cycle(labels), len(seeds)))
    options: dict[str, Any] = {}
    if temperature is not None:
        if "temperature" not in inspect.signature(model.generate).parameters:
            raise click.UsageError(f"{type(model).__name__} takes no --temperature.")
        options["temperature"] = temperature
    batches = []
    for start in range(0, len(seeds), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        if labels is not None:
            options["labels"] = labels[rows]
        batches.append(np.asarray(model.generate(seeds[rows], **options)))
    _write(np.concatenate(batches), seeds, out)
    noun = "image" if len(seeds) == 1 else "images"
    click.echo(f"{len(seeds)} {noun}: {out}")


def _check_destination(out: Path) -> None:
    """Fails now rather than after the model has been loaded and has worked."""
    if is_run(out):
        raise click.UsageError(f"--out is the folder of a run: {out}")
    if out.is_dir():
        return
    if out.suffix not in (".png", ".npy", ""):
        raise click.UsageError(
            f"--out must end in .png or .npy, or be a folder. Received: {out}"
        )
    if not out.suffix and out.is_file():
        raise click.UsageError(f"--out is a file, not a folder: {out}")
    if not out.parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist.")


def _write(images: Any, seeds: tuple[int, ...], out: Path) -> None:
    import numpy as np

    from kgen.data.atomic import replacing
    from kgen.data.image_grids import write_image, write_image_grid

    if out.is_dir() or not out.suffix:
        out.mkdir(exist_ok=True)
        # A label may be drawn with the same seed more than once: number the images.
        digits = len(str(len(seeds) - 1))
        for index, (seed, image) in enumerate(zip(seeds, images, strict=True)):
            write_image(image, out / f"{index:0{digits}d}-seed-{seed}.png")
    elif out.suffix == ".png":
        write_image_grid(images, out)
    else:
        with replacing(out) as file:
            np.save(file, images)
