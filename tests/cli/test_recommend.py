"""`kgen fit multvae`, `kgen recommend`, `kgen evaluate`: from ratings to titles."""

import json
import os

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import kgen
from kgen_cli.main import run

TITLES = ["Alien", "Aliens", "Alien 3", "Heat", "Ronin", "Collateral"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, load_once):
    """Files like MovieLens's, of 60 users who like three films of one kind; a run."""
    folder = tmp_path_factory.mktemp("recommend")
    rng = np.random.default_rng(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(60):
        for film in rng.permutation(3) + 3 * (user % 2):
            lines.append(f"{user},{10 * (film + 1)},{rng.integers(4, 6)},0")
    (folder / "ml").mkdir()
    (folder / "ml" / "ratings.csv").write_text("\n".join(lines))
    films = [f"{10 * (i + 1)},{title},Drama" for i, title in enumerate(TITLES)]
    (folder / "ml" / "movies.csv").write_text(
        "\n".join(["movieId,title,genres", *films])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = "fit multvae --data ml --min-items 3 --epochs 12 --batch-size 4"
        sizes = "--hidden-units 16 --latent-dim 4 --learning-rate 0.02"
        end = "--measure none --sample-epochs 12"
        assert run([*arguments.split(), *sizes.split(), *end.split()]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_titles_of_the_same_kind_come_first(capsys):
    assert run("recommend multvae --items 10,20 -k 2".split()) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["item", "score", "title"]
    assert first.split()[:2] == ["1", "30"]
    assert first.endswith("Alien 3")


def test_without_items_the_most_popular_are_recommended(capsys):
    assert run("recommend multvae -k 3".split()) == 0
    assert capsys.readouterr().out.startswith("Without --items: the most popular")


def test_seen_items_are_kept_on_request(capsys):
    assert run("recommend multvae --items 10 -k 6 --no-remove-seen".split()) == 0
    assert "Alien\n" in capsys.readouterr().out
    assert run("recommend multvae --items 10 -k 6".split()) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6  # five are left


def test_titles_are_those_of_the_run(capsys, folder):
    (folder / "ml").rename(folder / "gone")
    try:
        assert run("recommend multvae --items 10 -k 2".split()) == 0
        assert "Alien" in capsys.readouterr().out
    finally:
        (folder / "gone").rename(folder / "ml")


def test_both_runtimes_recommend_the_same(capsys):
    shown = []
    for runtime in ("onnx", "keras"):
        end = f"--items 10 -k 5 --runtime {runtime}"
        assert run(["recommend", "multvae", *end.split()]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_onnx_answers_without_tensorflow(folder, run_without_tensorflow):
    run_without_tensorflow("recommend multvae --items 10 -k 2", folder)


def test_an_older_onnx_file_is_passed_over(folder, capsys):
    file = folder / "saved_models" / "multvae" / "multvae.onnx"
    times = file.stat().st_atime, file.stat().st_mtime
    os.utime(file, (0, 0))
    try:
        command = ["recommend", "multvae", "--items", "10"]
        assert run([*command, "--runtime", "onnx"]) == 2
        assert "kgen export" in capsys.readouterr().err
        assert run(command) == 0
    finally:
        os.utime(file, times)


def test_the_run_has_samples_of_lists(folder):
    text = (folder / "saved_models/multvae/samples/epoch-0012.txt").read_text()
    assert text.startswith("user ")
    assert any(title in text for title in TITLES)


def test_evaluate_refuses_other_data(capsys, folder):
    file = folder / "ml" / "ratings.csv"
    whole = file.read_text()
    metrics = folder / "saved_models/multvae/metrics.json"
    metrics.write_text("before")
    (folder / "elsewhere").mkdir()
    for name in ("ratings.csv", "movies.csv"):
        (folder / "elsewhere" / name).write_bytes((folder / "ml" / name).read_bytes())
    file.write_text(whole.rsplit("\n", 30)[0])
    try:
        assert run(["evaluate", "multvae"]) == 2
        assert "are not its training data" in capsys.readouterr().err
        assert metrics.read_text() == "before"
        assert run(["evaluate", "multvae", "--data", "elsewhere"]) == 0
    finally:
        file.write_text(whole)
        for path in (folder / "elsewhere").iterdir():
            path.unlink()
        (folder / "elsewhere").rmdir()


def test_ids_with_commas_are_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = ["a,b", 'c "d"', "e", "f"]
    users, items = np.divmod(np.arange(40), 4)
    rows = [
        f'{user},"{ids[item].replace(chr(34), chr(34) * 2)}"'
        for user, item in zip(users, items, strict=True)
    ]
    (tmp_path / "r.csv").write_text("\n".join(["user,item", *rows]))
    fit = "fit multvae --data r.csv --min-items 1 --epochs 1 --batch-size 4"
    fit += " --measure none --export none"
    assert run([*fit.split(), "--hidden-units", "4", "--latent-dim", "2"]) == 0
    command = ["recommend", "saved_models/multvae", "-k", "2", "--items"]
    assert run([*command, '"a,b", e']) == 0
    out = capsys.readouterr().out
    assert 'c "d"' in out and " f" in out
    assert run([*command, '"c ""d""",f']) == 0
    assert "a,b" in capsys.readouterr().out


def test_evaluate_prints_the_baselines(capsys):
    assert run(["evaluate", "multvae"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = "metric model popularity item KNN EASE content KNN"
    assert header in [" ".join(line.split()) for line in lines]
    assert max(map(len, lines)) <= 80


def test_both_exports_recommend_what_keras_recommends(folder):
    model = kgen.load("saved_models/multvae")
    expected = model.recommend([[10, 20], [40], []], k=6)
    served = tf.saved_model.load("saved_models/multvae/1").signatures["recommend"](
        item_ids=tf.constant([[10, 20], [40, -1], [-1, 12345]], tf.int64)
    )
    np.testing.assert_array_equal(served["item_ids"], expected.item_ids)
    session = onnxruntime.InferenceSession("saved_models/multvae/multvae.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    ids = np.array([*json.loads(metadata["item_ids"]), -1])
    # Without a column of items every user gets the most popular.
    found = session.run(["recommended"], {"items": np.zeros((1, 0), np.int64)})[0]
    assert ids[found[0]].tolist() == expected.item_ids[2].tolist()
    items = np.array([[0, 1], [3, -1], [-1, -1]], np.int64)
    places, scores = session.run(["recommended", "scores"], {"items": items})
    np.testing.assert_array_equal(ids[places], expected.item_ids)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-5)
