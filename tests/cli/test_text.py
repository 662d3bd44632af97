"""`kgen fit gpt`, `kgen generate --prompt`, `kgen evaluate`: from text to text."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tokenizers
from starlette.testclient import TestClient

import kgen
from kgen.data import CharTokenizer
from kgen.models import BERT
from kgen.serving import ServedModel, make_application
from kgen_cli.main import run

LINES = "to be or not to be,\nthat is the question.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, load_once):
    """A repeating text and a GPT trained on it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(LINES * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = "fit gpt --data text.txt --context 16 --epochs 4 --batch-size 8"
        sizes = "--num-layers 1 --num-heads 2 --hidden-dim 32 --learning-rate 0.01"
        end = "--measure none --export all --sample-epochs 4 --no-jit-compile"
        assert run([*fit.split(), *sizes.split(), *end.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def served(folder):
    """The SavedModel's signature `generate`."""
    return tf.saved_model.load(folder / "saved_models/gpt/1").signatures["generate"]


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_text_continues_a_prompt(capsys):
    command = ["generate", "gpt", "--prompt", "to be", "--max-new-tokens", "14"]
    assert run([*command, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "to be or not to be,\n"
    assert run([*command, "--num-beams", "3"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert run([*command, "--seeds", "3,4"]) == 0
    three, four = capsys.readouterr().out.split(f"\n{'-' * 72}\n")
    assert run([*command, "--seeds", "4"]) == 0
    assert capsys.readouterr().out == four
    assert three.startswith("to be")


def test_both_runtimes_write_the_same(capsys):
    for options in ("--seeds 0-3", "--temperature 0", "--top-k 3 --stop ,"):
        command = f"generate gpt --prompt to --max-new-tokens 14 {options} --runtime"
        assert run([*command.split(), "keras"]) == 0
        expected = capsys.readouterr().out
        assert run([*command.split(), "onnx"]) == 0
        assert capsys.readouterr().out == expected
    assert run([*command.split(), "onnx", "--num-beams", "2"]) == 2


def test_onnx_answers_without_tensorflow(folder, run_without_tensorflow):
    run_without_tensorflow("generate gpt --prompt to --max-new-tokens 5", folder)


def test_a_stream_is_the_same_text(capsys):
    command = ["generate", "gpt", "--prompt", "that", "--seeds", "5", "--stop", "."]
    assert run(command) == 0
    whole = capsys.readouterr().out
    assert run([*command, "--stream"]) == 0
    assert capsys.readouterr().out == whole
    assert "." not in whole


def test_without_a_prompt_text_begins_on_a_new_line(capsys):
    assert run("generate gpt --max-new-tokens 20 --temperature 0".split()) == 0
    assert capsys.readouterr().out.startswith(("\nto be", "\nthat"))


def test_texts_are_written_to_a_file(folder, capsys):
    assert run("generate gpt --seeds 0-2 --max-new-tokens 5 --out t.txt".split()) == 0
    assert capsys.readouterr().out == "3 texts: t.txt\n"
    assert (folder / "t.txt").read_text().count("-" * 72) == 2
    assert run("generate gpt --temperature 0.5 --out poem.md".split()) == 0
    assert (folder / "poem.md").read_text().startswith("\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", "Zebra"], 1, "'Z' at 0"),
        (["--stop", "Z"], 1, "'Z'"),
        (["--stream", "--stop", "Z"], 1, "'Z'"),
    ],
)
def test_wrong_requests_are_one_line(arguments, code, message, capsys):
    assert run(["generate", "gpt", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]


def test_masks_are_filled(monkeypatch, capsys):
    tokenizer = CharTokenizer.of_text("abc")
    model = BERT(
        tokenizer=tokenizer,
        context=5,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        name="b",
    )
    monkeypatch.setattr(kgen, "load", lambda run: model)
    record = {"signatures": {one.name: one.describe() for one in model.signatures()}}
    monkeypatch.setattr("kgen_cli.tasks.read_record", lambda run: record)
    command = ["generate", "gpt", "--prompt"]
    assert run([*command, "a[MASK]b[MASK]", "--top-k", "2"]) == 0
    filled, first, second = capsys.readouterr().out.splitlines()
    assert filled == f"a{first[1]}b{second[1]}"
    assert len(first.split("  ")) == 2
    assert run([*command, "a[MASK]", "--top-k", "4"]) == 2
    assert "4 is not in the range 1<=x<=3" in capsys.readouterr().err


def test_samples_are_written_after_each_epoch(folder):
    text = (folder / "saved_models/gpt/samples/epoch-0004.txt").read_text()
    assert "|" in text and text.count("-" * 72) == 2


def test_evaluate_prints_and_writes_its_metrics(folder, capsys):
    assert run(["evaluate", "gpt", "--split", "validation", "--limit", "5"]) == 0
    assert "bits_per_character" in capsys.readouterr().out
    records = json.loads((folder / "saved_models/gpt/metrics.json").read_text())
    metrics = [record["metric"] for record in records]
    assert {"loss", "novelty@5", "tokens_per_second[cached]"} <= set(metrics)


def test_both_exports_generate_what_keras_generates(served):
    model = kgen.load("saved_models/gpt")
    prompts, seeds = ["to be", "q"], [7, 2**40]
    expected = model.generate(prompts, max_new_tokens=20, seeds=seeds, top_k=5)
    knobs = {
        "seeds": tf.constant(seeds, tf.int64),
        "max_new_tokens": tf.constant([20, 20]),
        "temperature": tf.constant([1.0, 1.0]),
        "top_k": tf.constant([5, 5]),
        "top_p": tf.constant([1.0, 1.0]),
        "min_p": tf.constant([0.0, 0.0]),
        "repetition_penalty": tf.constant([1.0, 1.0]),
    }
    answer = served(prompts=tf.constant(prompts), **knobs)
    assert [text.decode() for text in answer["text"].numpy()] == expected
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="texts of 1 or more tokens"
    ):
        served(prompts=tf.constant(["to be", ""]), **knobs)
    for name, wrong in (
        ("top_p", 0.0),
        ("temperature", -1.0),
        ("min_p", float("nan")),
        ("repetition_penalty", float("inf")),
        ("max_new_tokens", 2**31 - 1),
        ("max_new_tokens", 0),
    ):
        values = knobs | {name: tf.constant([wrong, wrong], knobs[name].dtype)}
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` must be"):
            served(prompts=tf.constant(prompts), **values)
    session = onnxruntime.InferenceSession("saved_models/gpt/gpt.onnx")
    tokenizer = tokenizers.Tokenizer.from_file("saved_models/gpt/tokenizer.json")
    rows = [np.array(one.ids) for one in tokenizer.encode_batch(prompts)]
    tokens = tf.ragged.constant([row.tolist() for row in rows], tf.int32).to_tensor(-1)
    inputs = {"tokens": tokens, **knobs}
    [written] = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    written = [row[row >= 0] for row in written]
    assert tokenizer.decode_batch(written) == expected


def test_completions_of_the_server_equal_those_of_keras():
    model = kgen.load("saved_models/gpt")
    prompts, most = ["to be", "q"], 30
    expected = model.generate(prompts, max_new_tokens=most, seeds=5, top_p=0.9)
    stopped = model.generate(prompts, max_new_tokens=most, seeds=5, top_p=0.9, stop="e")
    application = make_application([ServedModel(Path("saved_models/gpt"))])
    body = {"model": "gpt", "prompt": prompts, "max_tokens": most}
    body |= {"seed": 5, "top_p": 0.9}
    with TestClient(application) as client:
        for asked, texts in ((body, expected), (body | {"stop": "e"}, stopped)):
            answer = client.post("/v1/completions", json=asked)
            assert answer.status_code == 200, answer.text
            assert [one["text"] for one in answer.json()["choices"]] == texts
        for wrong, message in (
            ({"max_tokens": 4097}, "`max_tokens` must be integers in [1, 4096]"),
            ({"max_tokens": 0}, "`max_tokens` must be integers in [1, 4096]"),
            ({"temperature": -1}, "`temperature` must be finite numbers from 0"),
            ({"top_p": 0}, "`top_p` must be finite numbers in (0, 1]"),
        ):
            answer = client.post("/v1/completions", json=body | wrong)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]


def test_256_seeds_give_the_same_in_all_runtimes(served, monkeypatch):
    model = kgen.load("saved_models/gpt")
    monkeypatch.setattr(model, "jit_compile", True)
    count = 256
    greedy = np.arange(count) % 4 == 0
    inputs = {
        "tokens": np.tile(model.tokenizer.encode("that "), (count, 1)),
        "seeds": np.arange(count, dtype=np.int64),
        "max_new_tokens": np.full(count, 40, np.int32),
        "temperature": np.where(greedy, 0, 1).astype(np.float32),
        "top_k": np.zeros(count, np.int32),
        "top_p": np.full(count, 0.95, np.float32),
        "min_p": np.zeros(count, np.float32),
        "repetition_penalty": np.ones(count, np.float32),
    }
    signature = next(s for s in model.signatures() if "onnx" in s.runtimes)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    knobs = {name: value for name, value in inputs.items() if name != "tokens"}
    keras_tokens = np.stack(model.generate(inputs["tokens"], **knobs))
    # Two candidates as likely as each other may change places: then no more is asked.
    tied = signature.margins(**tensors).numpy() < 1e-4
    certain = np.cumsum(tied, axis=1) == 0
    assert certain.mean() > 0.99
    session = onnxruntime.InferenceSession("saved_models/gpt/gpt.onnx")
    [onnx_tokens] = session.run(None, inputs)
    assert (onnx_tokens == keras_tokens)[certain].all()
    del tensors["tokens"]
    answer = served(prompts=tf.constant(["that "] * count), **tensors)
    rows = certain.all(axis=1)
    texts = np.array([model.tokenizer.decode(row) for row in keras_tokens])
    received = np.array([text.decode() for text in answer["text"].numpy()])
    assert (received == texts)[rows].all()
    assert len(set(texts[~greedy])) > 100 and len(set(texts[greedy])) == 1
