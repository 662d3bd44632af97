"""`kgen generate`, `evaluate`, `export` and `list` on a run with a made-up model."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kgen
from kgen.export import Export
from kgen.export.manifest import write_sums
from kgen.models.shared.specs import ImageSpec, InputSpec
from kgen.training import RunFolder
from kgen_cli.main import run

SPECS = {"images": ImageSpec(4, 4, 1)}
SIGNATURE = {
    "inputs": {"seeds": {"dtype": "int64"}, "temperature": {"dtype": "float32"}},
    "outputs": {"images": "image"},
}


class MadeUpModel:
    """Images of the grey value seed / 1000 + label / 100."""

    def generate(self, seeds, labels=None, temperature=1.0):
        labels = labels or [0] * len(seeds)
        values = np.array(seeds) / 1000 * temperature + np.array(labels) / 100
        images = np.ones((len(seeds), 4, 4, 1)) * values[:, None, None, None]
        return images.astype(np.float32)

    def signatures(self):
        rows = [
            ("generate", ("onnx",), ["seeds"], "image"),
            ("encode", ("onnx",), ["images"], "latent"),
            ("score", ("onnx",), ["items"], "scores"),
            ("rank", ("saved_model",), ["items"], "items"),
        ]
        return [
            types.SimpleNamespace(
                name=name,
                runtimes=runtimes,
                inputs={n: SPECS.get(n, InputSpec()) for n in inputs},
                outputs={"output": kind},
            )
            for name, runtimes, inputs, kind in rows
        ]


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """A run `made_up` in saved_models/, and its model."""
    folder = tmp_path / "saved_models" / "made_up"
    folder.mkdir(parents=True)
    record = {
        "recipe": "vae",
        "options": {"data": "digits", "epochs": 5},
        "data": {"fingerprint": "of the data"},
        "started": "2026-01-02T03:04:05+00:00",
        "signatures": {"generate": SIGNATURE},
    }
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / "model.keras").touch()
    (folder / "history.csv").write_text("epoch,loss,val_loss\n1,30,31\n2,20,21.128\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(kgen), "load", lambda _: MadeUpModel())
    for verb in ("startup", "evaluate", "export"):
        monkeypatch.setattr(f"kgen_cli.{verb}.load_tensorflow", lambda: None)
    return folder


def add_classes(folder):
    """Make the run one of a conditional model of three classes."""
    record = json.loads((folder / "recipe.json").read_text())
    labels = {"dtype": "int32", "low": 0, "high": 2}
    record["signatures"]["generate"]["inputs"]["labels"] = labels
    (folder / "recipe.json").write_text(json.dumps(record))


def test_generate_writes_a_grid(tmp_path, capsys):
    assert run(["generate", "made_up", "--seeds", "0-4", "--out", "grid.png"]) == 0
    assert capsys.readouterr().out == "5 images: grid.png\n"
    with Image.open(tmp_path / "grid.png") as image:
        # Three columns and two rows of 4 x 4 images, eight times as large.
        assert image.size == (3 * 32 + 2 * 2, 2 * 32 + 2)


def test_generate_writes_an_array_in_the_order_of_the_seeds(tmp_path, run_folder):
    add_classes(run_folder)
    arguments = ["--seeds", "7,1-2", "--labels", "2", "--temperature", "0.5"]
    assert run(["generate", "made_up", *arguments, "--out", "x.npy"]) == 0
    images = np.load(tmp_path / "x.npy")
    assert images.dtype == np.float32
    # seed / 1000 * 0.5 + 2 / 100
    np.testing.assert_allclose(images[:, 0, 0, 0], [0.0235, 0.0205, 0.021], rtol=1e-6)


def test_generate_takes_a_label_for_each_seed(tmp_path, run_folder):
    add_classes(run_folder)
    arguments = ["--seeds", "0,0", "--labels", "1,2", "--out", "x.npy"]
    assert run(["generate", "made_up", *arguments]) == 0
    images = np.load(tmp_path / "x.npy")
    np.testing.assert_allclose(images[:, 0, 0, 0], [0.01, 0.02], rtol=1e-6)


def test_generate_writes_a_folder_of_images(tmp_path):
    assert run(["generate", "made_up", "--seeds", "9,9,10", "--out", "images"]) == 0
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["0-seed-9.png", "1-seed-9.png", "2-seed-10.png"]
    with Image.open(tmp_path / "images" / names[0]) as image:
        assert image.size == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [(["--labels", "1,2"], [1, 2, 1, 2, 1]), ([], [0, 1, 2, 0, 1])],
)
def test_generate_repeats_the_classes(tmp_path, run_folder, arguments, labels):
    add_classes(run_folder)
    arguments = ["--seeds", "0-4", *arguments, "--out", "x.npy"]
    assert run(["generate", "made_up", *arguments]) == 0
    values = np.load(tmp_path / "x.npy")[:, 0, 0, 0] - np.arange(5) / 1000
    np.testing.assert_allclose(values, np.array(labels) / 100, atol=1e-6)


def test_without_out_images_take_the_name_of_the_run(tmp_path, run_folder, capsys):
    for folder in ("made_up", str(run_folder)):
        assert run(["generate", folder]) == 0
        assert capsys.readouterr().out == "64 images: made_up.png\n"
    picture = tmp_path / "made_up.png"
    with Image.open(picture) as image:
        assert image.size == (8 * 34 - 2, 8 * 34 - 2)
        image.save(picture)  # by another program: without the text that kgen writes
    before = picture.read_bytes()
    assert run(["generate", "made_up"]) == 2
    assert "Choose another place: --out" in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert run(["generate", "made_up", "--out", "made_up.png"]) == 0


def test_generate_does_not_write_over_a_file_without_suffix(run_folder, capsys):
    (run_folder / "recipe").write_text("a file without suffix")
    assert run(["generate", "made_up", "--out", str(run_folder / "recipe")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_evaluate_prints_and_writes_records(run_folder, monkeypatch, capsys):
    asked = {}

    class MadeUpRecipe:
        def open_data(self):
            return types.SimpleNamespace(fingerprint="of the data")

        def evaluate(self, model, data, *, progress, unfinished, **options):
            progress(1, 10)
            unfinished.touch()
            asked.update(options, data=data)
            return ["record"]

    monkeypatch.setattr("kgen_cli.evaluate.recipe_of_run", lambda _: MadeUpRecipe())
    evaluation = types.ModuleType("kgen.evaluation")
    evaluation.table = lambda records: f"a table of {records}"
    evaluation.write_records = lambda path, records: path.write_text("written")
    monkeypatch.setitem(sys.modules, "kgen.evaluation", evaluation)

    assert run(["evaluate", "made_up", "--limit", "10"]) == 0
    assert asked.pop("data").fingerprint == "of the data"
    assert asked == {"split": "test", "limit": 10}
    assert capsys.readouterr().out.splitlines() == [
        "a table of ['record']",
        "Written: saved_models/made_up/metrics.json. How each was measured: "
        "--protocols",
    ]
    assert (run_folder / "metrics.json").read_text() == "written"
    assert not list(run_folder.glob("*unfinished*"))

    record = json.loads((run_folder / "recipe.json").read_text())
    record["signatures"]["reconstruct"] = SIGNATURE
    (run_folder / "recipe.json").write_text(json.dumps(record))
    assert run(["evaluate", "made_up", "--num-samples", "7"]) == 0
    assert asked["num_samples"] == 7


def test_protocols_are_read_from_the_file_and_nothing_is_loaded(
    run_folder, monkeypatch, capsys
):
    monkeypatch.setattr("kgen_cli.evaluate.load_tensorflow", None)
    record = kgen.evaluation.Record(
        metric="elbo", value=1.0, unit="", protocol="p", n=1, higher_is_better=True
    )
    kgen.evaluation.write_records(run_folder / "metrics.json", [record])
    assert run("evaluate made_up --protocols".split()) == 0
    assert capsys.readouterr().out == "elbo (higher is better): p\n"


ONNX = ["vae.onnx", "vae.encode.onnx", "vae.score.onnx"]
SERVED = [
    "made_up/1 (2.00 MB, 3.0 s)",
    "",
    "Served by `docker compose up` in this folder, it answers:",
]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["--format", "saved_model"], [*SERVED, "curl made_up", ""]),
        (["--format", "onnx"], ONNX),
        ([], [*SERVED, "curl made_up", "", *ONNX]),
        (
            ["--format", "triton"],
            [line for name in ONNX for line in (name, f"  triton/{name}")],
        ),
        (
            ["--layout", "nchw"],
            ["vae.nchw.float32.onnx nchw", "vae.encode.nchw.float32.onnx nchw"],
        ),
    ],
)
def test_export_writes_each_format(arguments, written, monkeypatch, capsys):
    def to_onnx(model, path, signature, *, layout, dtype, metadata):
        assert metadata == {"recipe": "vae"}
        assert signature == (path.name.split(".")[1:-1] or ["generate"])[0] or other
        return f"{path.name} {layout}" if other else path.name

    def to_saved_model(model, folder, *, metadata):
        about = (), 2 * 10**6, 3.0, f"curl {folder.name}"
        return Export(Path(f"{folder.name}/1"), *about)

    other = "--layout" in arguments
    stubs = {
        "to_saved_model": to_saved_model,
        "to_onnx": to_onnx,
        "to_triton": lambda path, folder: f"{folder.name}/{path.name}",
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(f"kgen.export.{name}", stub)
    assert run(["export", "made_up", *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == written


def test_export_is_refused_during_a_fit_and_clears_a_killed_export(run_folder, capsys):
    half = run_folder / ".saved_model.0123abcd.tmp"
    half.mkdir()
    with RunFolder(run_folder).claim(resume=True):
        half.mkdir()
        assert run(["export", "made_up"]) == 1
    assert "A run must have one writer." in capsys.readouterr().err
    assert half.exists()
    assert run(["export", "made_up", "--format", "saved_model", "--debug"]) == 1
    assert not half.exists()


def test_export_checks_what_is_there(run_folder, capsys):
    assert run(["export", "made_up", "--check"]) == 2
    assert "holds no exports yet" in capsys.readouterr().err
    (run_folder / "1").mkdir()
    (run_folder / "1" / "saved_model.pb").write_bytes(b"graph")
    (run_folder / "made_up.onnx").write_bytes(b"graph")
    write_sums(run_folder / "1")
    write_sums(run_folder / "made_up.onnx")
    assert run(["export", "made_up", "--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "saved_models/made_up/1: 1 file as written",
        "saved_models/made_up/made_up.onnx: 1 file as written",
    ]
    (run_folder / "made_up.onnx").write_bytes(b"grapy")
    assert run(["export", "made_up", "--check"]) == 1
    assert "made_up.onnx is changed" in capsys.readouterr().err
    assert run("export made_up --format saved_model --dtype uint8".split()) == 2
    assert "of ONNX files alone" in capsys.readouterr().err


def test_list_shows_recipes_and_runs(capsys):
    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Recipes:"
    at = lines.index("Runs in saved_models/:")
    assert lines[at + 1].split() == "run recipe data epochs loss date".split()
    # The validation loss of the last epoch; the date is local time.
    assert lines[at + 2].split()[:7] == "made_up vae digits 2 of 5 21.13".split()


def test_list_shows_an_unfinished_and_a_damaged_run(run_folder, capsys):
    (run_folder / "history.csv").unlink()
    damaged = run_folder.parent / "worn"
    damaged.mkdir()
    (damaged / "recipe.json").write_text("{")
    assert run(["list", "--folder", str(run_folder.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " 0 of 5 " in lines[-2]
    assert "unreadable" in lines[-1] and "recipe.json" in lines[-1]


def test_list_without_runs_names_the_command_that_trains(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(["list", "--folder", "empty"]) == 0
    assert "No runs in empty/. Start one: kgen fit vae" in capsys.readouterr().out
