"""`kgen generate RUN`: images, text or filled masks from a trained model."""

import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from kgen.nn.decoding_parameters import BeamParameters, SamplingParameters, defaults

from .options import (
    IntegerRanges,
    RunFolder,
    counted,
    debug_option,
    is_run,
    model_config,
    typed,
)
from .runtimes import find_session, runtime_option
from .startup import load_model
from .tasks import check_ranges, find_task

# Options that are inputs of signatures, with their types. Ranges are those of the run.
NUMBERS: dict[str, tuple[type, str]] = {
    "truncation": (float, "Bound of a GAN's latents; 0.7: typical, less diverse."),
    "max_new_tokens": (int, "Tokens of a text to generate; default: 500."),
}
for _field in (*fields(SamplingParameters), *fields(BeamParameters)):
    _kind = int if _field.metadata["spec"]["dtype"] == "int32" else float
    NUMBERS[_field.name] = (_kind, _field.metadata["help"])


def _number_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, (kind, text) in reversed(NUMBERS.items()):
        function = click.option(_as_flag(name), type=kind, help=text)(function)
    return function


def _as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@click.command("generate")
@click.argument("run", type=RunFolder(trained=True))
@click.option(
    "--seeds",
    type=IntegerRanges(),
    help="One image or text for each seed; default: 0-63 for images, 0 for text.",
)
@click.option(
    "--labels",
    type=IntegerRanges(),
    help="Classes of images, for a conditional model; repeated until each seed has "
    "one; default: all classes.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Images: X.png: one picture of all; X.npy: an array, float32 in [0, 1]; any "
    "other name: a folder with a PNG for each seed; default: RUN.png in the current "
    "folder, never in place of a file that kgen did not write. Text: a file, replaced "
    "if it exists; default: the terminal.",
)
@click.option(
    "--prompt",
    help="Beginning of the text; default: a new line. For a BERT: a text with [MASK] "
    "where tokens are to be filled in.",
)
@click.option("--stream", is_flag=True, help="Print text while it is generated.")
@click.option("--stop", multiple=True, help="Stop sequence; may be repeated.")
@runtime_option
@_number_options
@debug_option
@click.pass_context
def command(call: click.Context, run: Path, **options: Any) -> None:
    """Generate images or text from RUN, one for each seed; or fill masks in a text."""
    given = typed(call, options)
    out = given.get("out")
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist.")
    task = find_task(run, "generate")
    generate, own_options = GENERATORS[task.kind]
    unknown = given.keys() - {*own_options, *task.inputs}
    if unknown:
        raise click.UsageError(f"The model of {run} takes no {_as_flags(unknown)}.")
    check_ranges(task.inputs, given)
    generate(run, task.inputs, **given)


def _as_flags(names: Iterable[str]) -> str:
    return ", ".join(map(_as_flag, sorted(names)))


def _generate_text(
    run: Path,
    inputs: dict[str, Any],
    *,
    seeds: tuple[int, ...] = (0,),
    out: Path | None = None,
    prompt: str = "\n",
    stream: bool = False,
    max_new_tokens: int = 500,
    num_beams: int = 1,
    length_penalty: float = 0.0,
    stop: tuple[str, ...] = (),
    runtime: str = "auto",
    **sampling: Any,
) -> None:
    """Print or write the prompt and its continuation, for each seed."""
    if out is not None and (out.is_dir() or is_run(out.parent)):
        raise click.UsageError(f"--out is a folder, or a file of a run: {out}")
    if not prompt or "" in stop:
        raise click.UsageError("--prompt and --stop must not be empty.")
    if num_beams > 1 and sampling:
        raise click.UsageError(
            f"A beam search does not sample. Received: --num-beams {num_beams} and "
            f"{_as_flags(sampling)}. Leave one out."
        )
    if stream and (out is not None or len(seeds) > 1 or num_beams > 1):
        raise click.UsageError(
            "--stream prints one text: without --out, --num-beams, and a second seed."
        )
    options = {"max_new_tokens": max_new_tokens, "stop": stop, **sampling}
    if stream:
        chunks = load_model(run).stream(prompt, seed=seeds[0], **options)
        first = next(chunks, "")  # Errors are raised before anything is printed.
        for chunk in itertools.chain([prompt, first], chunks):
            click.echo(chunk, nl=False)
        click.echo()
        return
    names = {"tokens", "seeds", "max_new_tokens", *defaults(SamplingParameters)}
    # The file knows no limit of the context.
    usual = num_beams == 1 and model_config(run).get("positions") == "rotary"
    session = find_session(run, runtime, names, suffices=usual)
    if session is None:
        options |= {"num_beams": num_beams, "length_penalty": length_penalty}
        texts = load_model(run).generate([prompt] * len(seeds), seeds=seeds, **options)
    else:
        texts = _texts_by_onnx(session, prompt, seeds, **options)
    line = f"\n{'-' * 72}\n"
    whole = line.join(prompt + text for text in texts) + "\n"
    if out is None:
        click.echo(whole, nl=False)
        return
    from kgen.files import write_text

    write_text(out, whole)
    click.echo(f"{counted(len(seeds), 'text')}: {out}")


def _texts_by_onnx(
    session: Any,
    prompt: str,
    seeds: tuple[int, ...],
    *,
    max_new_tokens: int,
    stop: tuple[str, ...],
    **sampling: Any,
) -> list[str]:
    """Continue a prompt for each seed, by an ONNX file."""
    from kgen.data import tokenizer_from_json
    from kgen.data.stop_sequences import truncate_at_stop

    file = session.path.with_name("tokenizer.json")
    tokenizer = tokenizer_from_json(file.read_text(encoding="utf-8"))
    for text in stop:
        tokenizer.encode(text)  # Refuses a text that can never be generated.
    found = session(
        tokens=[tokenizer.encode(prompt)] * len(seeds),
        seeds=seeds,
        max_new_tokens=max_new_tokens,
        **defaults(SamplingParameters) | sampling,
    )["generated"]
    return [truncate_at_stop(tokenizer.decode(row), stop) for row in found]


def _fill_masks(
    run: Path, inputs: dict[str, Any], *, prompt: str = "", top_k: int | None = None
) -> None:
    """Print the prompt with its masks filled, and the best predictions for each."""
    if "[MASK]" not in prompt:
        raise click.UsageError(
            f"A text with [MASK] in it is needed: --prompt 'to be or n[MASK]t to be'. "
            f"Received: {prompt!r}"
        )
    most = inputs["tokens"]["high"]  # The mask comes after all tokens of the text.
    top_k = min(5, most) if top_k is None else top_k
    check_ranges({"top_k": inputs["tokens"] | {"low": 1}}, {"top_k": top_k})
    predictions = load_model(run).fill_mask(prompt, k=top_k)
    for best, *_ in predictions:
        prompt = prompt.replace("[MASK]", best.text, 1)
    click.echo(prompt)
    for best in predictions:
        click.echo("  ".join(f"{one.text!r} {one.probability:.2f}" for one in best))


def _generate_images(
    run: Path,
    inputs: dict[str, Any],
    *,
    seeds: tuple[int, ...] = tuple(range(64)),
    out: Path | None = None,
    runtime: str = "auto",
    **options: Any,
) -> None:
    """Write an image for each seed."""
    if out is None:
        out = Path(f"{run.resolve().name}.png")
        if out.exists() and not _is_ours(out):
            raise click.UsageError(
                f"{out} exists, and kgen did not write it. Choose another place: --out"
            )
    _check_destination(out)
    if "labels" in inputs:
        labels = options.get("labels") or range(inputs["labels"]["high"] + 1)
        cycle = itertools.cycle(labels)
        options["labels"] = tuple(itertools.islice(cycle, len(seeds)))
    session = find_session(run, runtime, {"seeds", *options})
    if session is None:
        images = load_model(run).generate(seeds, **options)
    else:
        images = session(seeds=seeds, **options)["images"]
    _write_images(images, seeds, out)
    click.echo(f"{counted(len(seeds), 'image')}: {out}")


TEXT = ("out", "prompt", "stream", "stop", "runtime")
# A function for each kind of output, and its options beside the signature's inputs.
GENERATORS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "image": (_generate_images, ("out", "runtime")),
    "scores": (_fill_masks, ("prompt", "top_k")),
    "text": (_generate_text, TEXT),
    "tokens": (_generate_text, TEXT),
}


def _is_ours(path: Path) -> bool:
    """Whether kgen wrote a picture."""
    from PIL import Image

    from kgen.pictures import SOFTWARE

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:  # not a picture
        return False


def _check_destination(out: Path) -> None:
    """Refuse a place that images cannot be written to."""
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
            content = io.BytesIO()  # A full disk is an OSError with a reason.
            np.save(content, images)
            file.write(content.getbuffer())
