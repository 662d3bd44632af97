"""`kgen generate RUN`: draws images from a trained model, writes text, fills masks."""

import inspect
import itertools
from collections.abc import Callable
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
    help="One image, or text, for each, always the same one; default: 0-63, or 0.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=100),
    help="How far the noise spreads; the model's default is 1.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Images: X.png: one picture with all of them; X.npy: their values, float32 in "
    "[0, 1]; anything else: a folder, with one PNG for each seed. Text: a file.",
)
@click.option(
    "--labels",
    type=IntegerRanges(),
    help="The classes of images, for a conditional model: one for all seeds, or "
    "several that the seeds take in turn; default: all of them in turn.",
)
@click.option(
    "--prompt",
    help="What text goes on from; default: a new line. For a BERT a text with [MASK] "
    "in it, which is filled.",
)
@click.option("--stream", is_flag=True, help="Show text while it is written.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="How long; default: 500."
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    help="Draw from so many tokens; 0: from all. For a BERT: how many guesses to show.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Draw from the likeliest tokens with this probability together.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0, max=1),
    help="Draw from tokens with this share of the probability of the likeliest.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    help="Divides the scores of tokens that are there already.",
)
@click.option(
    "--num-beams",
    type=click.IntRange(min=1),
    help="Search for the likeliest text with so many beams, in place of drawing.",
)
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@debug_option
def command(
    run: Path,
    seeds: tuple[int, ...] | None,
    temperature: float | None,
    out: Path | None,
    **others: Any,
) -> None:
    """Draw images from RUN, or write text, for each seed; or fill masks in a text."""
    given = {name: value for name, value in others.items() if value not in (None, ())}
    if not given["stream"]:
        del given["stream"]
    if temperature is not None:
        given["temperature"] = temperature
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist.")
    load_tensorflow()
    import kgen

    model = kgen.load(run)
    if hasattr(model, "recommend"):
        raise click.UsageError(
            f"{type(model).__name__} generates nothing. It recommends: kgen recommend."
        )
    generate: Callable[..., None] = _draw_images
    if hasattr(model, "stream"):
        generate = _write_text
    elif hasattr(model, "fill_mask"):
        generate = _fill_masks
    known = {*inspect.signature(generate).parameters}
    if generate is _draw_images:
        known &= {"labels", *inspect.signature(model.generate).parameters}
    unknown = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if unknown:
        raise click.UsageError(f"{type(model).__name__} takes no {', '.join(unknown)}.")
    generate(model, seeds, out, **given)


def _write_text(
    model: Any,
    seeds: tuple[int, ...] | None,
    out: Path | None,
    *,
    prompt: str = "\n",
    stream: bool = False,
    max_new_tokens: int = 500,
    num_beams: int = 1,
    stop: tuple[str, ...] = (),
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> None:
    """Prints the prompt and what follows it, for each seed."""
    if out is not None and (out.is_dir() or is_run(out.parent)):
        raise click.UsageError(f"--out is a folder, or in that of a run: {out}")
    seeds = seeds or (0,)
    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    options: dict[str, Any] = {
        name: value for name, value in settings.items() if value is not None
    }
    options |= {"max_new_tokens": max_new_tokens, "stop": stop}
    if stream:
        if out is not None or len(seeds) > 1 or num_beams > 1:
            raise click.UsageError(
                "--stream shows one text: without --out, --num-beams, and a second "
                "seed."
            )
        pieces = model.stream(prompt, seed=seeds[0], **options)
        first = next(pieces, "")  # What is wrong is said before anything is shown.
        for piece in itertools.chain([prompt, first], pieces):
            click.echo(piece, nl=False)
        click.echo()
        return
    texts = model.generate(
        [prompt] * len(seeds), seeds=seeds, num_beams=num_beams, **options
    )
    line = f"\n{'-' * 72}\n"
    whole = line.join(prompt + text for text in texts) + "\n"
    if out is None:
        click.echo(whole, nl=False)
        return
    from kgen.files import replacing

    with replacing(out) as file:
        file.write(whole.encode())
    click.echo(f"{len(seeds)} {'text' if len(seeds) == 1 else 'texts'}: {out}")


def _fill_masks(
    model: Any,
    seeds: tuple[int, ...] | None,
    out: Path | None,
    *,
    prompt: str | None = None,
    top_k: int | None = None,
) -> None:
    """Prints the prompt with its masks filled, and what else may stand at each."""
    if seeds or out:
        raise click.UsageError(f"{type(model).__name__} takes no --seeds and no --out.")
    if prompt is None:
        raise click.UsageError("A text is missing: --prompt 'to be or n[MASK]t to be'.")
    most = model.vocab_size
    if top_k is not None and not 1 <= top_k <= most:
        raise click.UsageError(f"--top-k must be 1 to {most}, the number of tokens.")
    guesses = model.fill_mask(prompt, k=top_k or min(5, most))
    for best, *_ in guesses:
        prompt = prompt.replace("[MASK]", best.text, 1)
    click.echo(prompt)
    for best in guesses:
        click.echo("  ".join(f"{one.text!r} {one.probability:.2f}" for one in best))


def _draw_images(
    model: Any,
    seeds: tuple[int, ...] | None,
    out: Path | None,
    *,
    labels: tuple[int, ...] | None = None,
    temperature: float | None = None,
) -> None:
    """Writes an image for each seed."""
    import numpy as np

    if out is None:
        raise click.UsageError("Images need a place: --out images.png, or a folder.")
    _check_destination(out)
    seeds = seeds or tuple(range(64))
    if labels is None and getattr(model, "num_classes", None):
        labels = tuple(range(model.num_classes))
    if labels is not None:
        labels = tuple(itertools.islice(itertools.cycle(labels), len(seeds)))
    options: dict[str, Any] = {}
    if temperature is not None:
        options["temperature"] = temperature
    batches = []
    for start in range(0, len(seeds), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        if labels is not None:
            options["labels"] = labels[rows]
        batches.append(np.asarray(model.generate(seeds[rows], **options)))
    _write_images(np.concatenate(batches), seeds, out)
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


def _write_images(images: Any, seeds: tuple[int, ...], out: Path) -> None:
    import numpy as np

    from kgen.files import replacing
    from kgen.pictures import write_image, write_image_grid

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
