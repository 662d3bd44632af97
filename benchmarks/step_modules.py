"""Modules of kgen whose functions run in one eager `train_step`, by model.

They are the files a reader has to open to follow one step. The second step of a tiny
model is profiled, so that nothing is counted that only the first one builds. Beside
each module stand its code lines: merging modules lowers the count of modules only while
none grows past `LIMIT`.

    python benchmarks/step_modules.py [VAE GAN ...]
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from code_lines import code_lines

LIMIT = 450  # lines of a file


def make_models() -> dict[str, Callable[[], tuple[Any, dict[str, Any]]]]:
    """Returns functions that make a compiled model and a batch, by the model's name."""
    import tensorflow as tf

    from kgen import data, models

    images = {"images": tf.zeros([4, 16, 16, 1])}
    items = {"items": tf.ragged.constant([[0, 3], [2], [1, 4, 5], [5]], dtype=tf.int32)}
    letters = "abcdefgh"
    tokens = {"tokens": tf.reshape(tf.range(36), [4, 9]) % len(letters)}
    text = {
        "tokenizer": data.CharTokenizer(letters),
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
    }

    def model(kind, batch, **arguments):
        def make():
            made = kind(**arguments)
            made.compile()
            return made, batch

        return make

    image_model = {"image_shape": (16, 16, 1), "latent_dim": 4}
    return {
        "VAE": model(models.VAE, images, **image_model),
        "GAN": model(models.GAN, images, **image_model),
        "MultVAE": model(models.MultVAE, items, item_ids=range(6)),
        "RecVAE": model(models.RecVAE, items, item_ids=range(6)),
        "CFGAN": model(models.CFGAN, items, item_ids=range(6)),
        "GPT": model(models.GPT, tokens, **text, context=8),
        "BERT": model(models.BERT, tokens, **text, context=9),
    }


def modules_of_step(model: Any, batch: dict[str, Any]) -> list[Path]:
    """Returns the files of kgen with a function that `model.train_step(batch)` runs."""
    import kgen

    root = str(Path(kgen.__file__).parent)
    files = set()

    def record(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            files.add(frame.f_code.co_filename)

    model.train_step(batch)
    sys.setprofile(record)
    try:
        model.train_step(batch)
    finally:
        sys.setprofile(None)
    return sorted(Path(file).relative_to(root) for file in files)


def main() -> None:
    """Reads the command line and prints the modules of each model."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    models = make_models()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help=f"of {', '.join(models)}; all")
    import kgen

    for name in parser.parse_args().models or models:
        files = modules_of_step(*models[name]())
        print(f"{name}: {len(files)} modules")
        for file in files:
            source = Path(kgen.__file__).parent.joinpath(file).read_text()
            lines = len(source.splitlines())
            mark = f"  over {LIMIT}" if lines > LIMIT else ""
            print(f"  {file!s:32} {lines:4} lines, {code_lines(source):4} code{mark}")


if __name__ == "__main__":
    main()
