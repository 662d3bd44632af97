"""Code blocks of the README and of docs/, and tiny data for them."""

import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TEXT = (
    "ROMEO:\nO, wilt thou leave me? JULIET: To be or not to be, that is the question.\n"
)
ITEMS = [1, 50, 260, *range(300, 320)]
# One epoch, small networks and no XLA, for blocks of Python.
TINY = {
    r"epochs=\d+": "epochs=1",
    r"jit_compile=True": "jit_compile=False",
    r"max_new_tokens=\d+": "max_new_tokens=5",
    r"models\.(GPT|BERT)\(": r"models.\1(num_layers=1, num_heads=2, hidden_dim=16, ",
    r"VAERecipe\(": "VAERecipe(measure='none', export='none', sample_epochs=9, ",
    r"models\.MultVAE\(": "models.MultVAE(hidden_units=(8,), latent_dim=4, ",
}


def code_blocks(page, language):
    """The fenced blocks of a language, in the order of the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page):
    """The words after `kgen` of each command in the `sh` blocks of a page."""
    lines = [line for block in code_blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if "kgen " in line]


def tiny(block):
    """A block of Python with the changes of `TINY`."""
    for pattern, replacement in TINY.items():
        block = re.sub(pattern, replacement, block)
    return block


def write_data(folder):
    """Writes tiny data to the paths that the pages name, `path/to/...`."""
    rng = np.random.default_rng(0)
    for index in range(40):
        image = folder / "images" / "ab"[index % 2] / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (72, 70, 3), np.uint8)).save(image)
    (folder / "texts").mkdir()
    for text in ("input.txt", "texts/one.txt"):
        (folder / text).write_text(100 * TEXT)
    pairs = [
        (user, item) for user in range(150) for item in ITEMS if rng.random() < 0.5
    ]
    rows = [f"{user}\t{item}\t5\t{time}\n" for time, (user, item) in enumerate(pairs)]
    with zipfile.ZipFile(folder / "ml-100k.zip", "w") as archive:
        archive.writestr("u.data", "".join(rows))
        films = [f"{item}|Film {item} (1995)|||x|1\n" for item in ITEMS]
        archive.writestr("u.item", "".join(films))
        archive.writestr("u.genre", "Drama|0\n")
    rows = [f"{user},{item},5\n" for user, item in pairs]
    (folder / "ratings.csv").write_text("user,item,rating\n" + "".join(rows))
