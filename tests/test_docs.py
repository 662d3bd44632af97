"""The commands and the code of the README and docs/, run as they stand on tiny data."""

import contextlib
import io
import re
import shlex

import pytest

import kgen
import kgen_cli.main
from code_blocks import ROOT, code_blocks, commands, tiny, write_data
from kgen.recipes import presets
from kgen_cli.fit import recipe_command
from kgen_cli.main import run

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
ONLY_TRAIN = ["--measure", "none", "--export", "none"]
TINY_TEXT = ["--data", "path/to/input.txt", "--num-layers", "1", "--no-jit-compile"]
# The runs that the commands and the code of the pages use.
RUNS = {
    "vae": ["--measure", "none"],
    "gan": ["--base-channels", "4", *ONLY_TRAIN],
    "gpt": [*TINY_TEXT, "--name", "gpt-shakespeare", *ONLY_TRAIN],
    "bert": [*TINY_TEXT, *ONLY_TRAIN],
    "multvae": ["--data", "path/to/ml-100k.zip", *ONLY_TRAIN],
}
# What makes a command quick, by how it begins.
QUICK = {
    ("evaluate", "vae"): ["--limit", "4", "--num-samples", "2"],
    ("generate", "gpt-shakespeare"): ["--max-new-tokens", "4"],
}


def is_slow(words):
    """Whether a command takes seconds: exports, and the longer of two evaluations."""
    exports = words[0] == "export" and "--check" not in words
    return exports or words == ("evaluate", "vae")


def words_of(*verbs):
    """Each command of the pages with one of these verbs, once."""
    found = {tuple(words): page for page in PAGES for words in commands(page)}
    return [
        pytest.param(
            words, id=" ".join(words), marks=[pytest.mark.slow] * is_slow(words)
        )
        for words in found
        if words[0] in verbs
    ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with the data and the runs of the pages, untrained and unverified."""
    folder = tmp_path_factory.mktemp("reader")
    write_data(folder / "path" / "to")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(kgen.training, "fit", lambda *args, **options: None)
        for module in ("saved_model", "onnx_file"):
            patch.setattr(f"kgen.export.{module}.verify", lambda *args: ())
        for recipe, options in RUNS.items():
            assert run(["fit", recipe, *options]) == 0
    return folder


@pytest.fixture
def in_folder(reader, monkeypatch):
    monkeypatch.chdir(reader)
    return reader


def test_every_command_is_run():
    verbs = {words[0] for page in PAGES for words in commands(page)}
    # The server is started by tests/test_readme.py.
    assert verbs == {
        "fit",
        "generate",
        "recommend",
        "evaluate",
        "export",
        "list",
        "serve",
    }


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", *PAGES])
def test_a_command_in_the_text_has_known_options(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for command in re.findall(r"`kgen ([a-z][^`]*)`", text):
        verb, *words = shlex.split(command.replace("\n", " "))
        known = kgen_cli.main.kgen.commands[verb]
        if verb == "fit" and words and words[0].islower():
            known = recipe_command(words[0])
            if "--preset" in words:
                assert words[words.index("--preset") + 1] in presets(words[0])
        options = {name for option in known.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}


@pytest.mark.parametrize("words", words_of("fit"))
def test_a_recipe_can_be_planned(words, in_folder, capsys):
    if "path/to/tensorflow_datasets" in words:
        pytest.skip("MNIST takes seconds to open: in the lane `slow`")
    assert run([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out


def test_the_readme_shows_what_a_first_run_prints(in_folder, capsys):
    shown, shown_later = code_blocks("README.md", "text")[:2]
    assert run(["fit", "vae", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert shown[: len(plan)] == plan
    assert run(["generate", "vae"]) == 0
    assert capsys.readouterr().out == shown_later


@pytest.mark.slow
@pytest.mark.parametrize("words", words_of("fit"))
def test_a_recipe_trains(words, in_folder, request):
    if "path/to/tensorflow_datasets" in words:
        data = in_folder / "path" / "to" / "tensorflow_datasets"
        if not data.exists():
            data.symlink_to(request.getfixturevalue("test_data") / "tfds")
    short = ["--epochs", "1", "--name", f"run-{abs(hash(words))}"]
    assert run([*words, *ONLY_TRAIN, *([] if "--resume" in words else short)]) == 0


@pytest.mark.parametrize(
    "words", words_of("generate", "recommend", "evaluate", "export", "list")
)
def test_a_command_succeeds(words, in_folder, capsys):
    assert run([*words, *QUICK.get(words[:2], [])]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{page}-{index}",
            # Exports of the README's block, and of the runs, are enough by default.
            marks=[pytest.mark.slow] * ("to_onnx" in block and page != "README.md"),
        )
        for page in PAGES
        for index, block in enumerate(code_blocks(page, "python"))
        if "import OpenAI" not in block  # tests/serving/test_real_parts.py
    ],
)
def test_a_block_of_python_runs(block, in_folder):
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(tiny(block), "block", "exec"), {"__name__": "__main__"})


def test_the_site_is_built_with_what_the_extra_installs():
    extra = re.search(r'"docs": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.DOTALL)
    section = (ROOT / "tox.ini").read_text().partition("[testenv:docs]")[2]
    listed = section.partition("deps =\n")[2].partition("set_env")[0]
    assert re.findall(r'"(.+)"', extra[1]) == listed.split()
