"""GPT: loss, KV cache, generation, text, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kgen
from kgen.data.tokenizers import CharTokenizer
from kgen.models import GPT, gpt
from kgen.models.shared.generation import CHUNK
from kgen.models.shared.text_model import padded
from kgen.nn import random
from kgen.nn.decoding_parameters import SamplingParameters
from kgen.nn.sampling import next_tokens

TEXT = "to be or not to be, that is the question."


def make(**options):
    keras.utils.set_random_seed(0)
    options = {
        "vocab_size": 17,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
    } | options
    if "tokenizer" in options:
        del options["vocab_size"]
    model = GPT(**{"context": 12} | options)
    for variable in model.trainable_variables:
        variable.assign(6 * variable)  # As it begins, all tokens are nearly alike.
    model.compile(keras.optimizers.SGD(0.1))
    return model


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 17, length).tolist() for length in lengths]


# -- the loss ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Embedding; per block: two norms, heads, mix, up and down; the last norm.
        ({}, 17 * 8 + 2 * (32 + 8 * 24 + 24 + 72 + 8 * 32 + 32 + 32 * 8 + 8) + 16),
        ({"positions": "learned"}, 17 * 8 + 12 * 8 + 2 * 872 + 16),
        (
            {"vocab_size": 65, "hidden_dim": 128, "num_layers": 4, "num_heads": 4},
            801_664,
        ),
    ],
)
def test_parameters_are_counted_to_the_last(options, expected):
    model = make(**options)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == expected


def test_no_two_layers_have_the_same_initial_values():
    matrices = [w.numpy() for w in make(positions="learned").weights if w.ndim == 2]
    starts = {tuple(matrix.ravel()[:4]) for matrix in matrices}
    assert len(starts) == len(matrices)


def test_the_loss_is_the_mean_over_unmasked_tokens():
    model = make()
    tokens = tf.constant([[1, 2, 3, 4, 5], [6, 7, 8, -1, -1]])
    mask = tf.constant([[True, True, False, True, True], [True] * 5])
    logs = model.test_step({"tokens": tokens, "mask": mask})
    logits = np.float64(model({"tokens": tokens[:, :-1]}))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    counted = [(0, 0, 2), (0, 2, 4), (0, 3, 5), (1, 0, 7), (1, 1, 8)]
    loss = -np.mean([log_probs[index] for index in counted])
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(logs["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(logs["bits_per_character"], loss / np.log(2), rtol=1e-5)
    model = make(tokens_per_character=0.5)
    logs = model.test_step({"tokens": tokens, "mask": mask})
    np.testing.assert_allclose(
        logs["bits_per_character"], 0.5 * loss / np.log(2), rtol=1e-5
    )


def test_attention_is_causal_and_ends_at_the_context():
    model = make(context=4, num_layers=1)
    tokens = np.array(prompts(10))
    before = model({"tokens": tokens}).numpy()
    for position in range(10):
        changed = tokens.copy()
        changed[0, position] = (changed[0, position] + 1) % 17
        after = model({"tokens": changed}).numpy()
        differs = np.abs(after - before)[0].max(axis=1) > 1e-6
        # One layer sees four tokens, its own among them.
        assert differs.nonzero()[0].tolist() == list(
            range(position, min(position + 4, 10))
        )


def test_weight_decay_excludes_norms_and_biases():
    model = make()
    model.compile(keras.optimizers.AdamW(1e-9, weight_decay=1e8))
    before = [variable.numpy() for variable in model.trainable_variables]
    model.train_step({"tokens": tf.constant(prompts(5))})
    for old, variable in zip(before, model.trainable_variables, strict=True):
        shrunk = 0.9 * old if old.ndim > 1 else old
        np.testing.assert_allclose(variable, shrunk, atol=1e-6)


def test_dropout_is_keyed_by_seed_step_and_row():
    model = make(dropout=0.3)
    batch = {"tokens": tf.constant(prompts(6, 6))}
    keys = model.noise_keys(batch["tokens"], random.STREAM_TRAIN)
    first, again = (model._logits(batch["tokens"], keys).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    alone = model._logits(batch["tokens"][1:], keys[1:]).numpy()
    np.testing.assert_allclose(alone[0], first[1], atol=1e-5)
    model.step.assign_add(1)
    keys = model.noise_keys(batch["tokens"], random.STREAM_TRAIN)
    assert abs(model._logits(batch["tokens"], keys) - first).numpy().max() > 1e-2


def test_it_overfits_one_text():
    model = make(tokenizer=CharTokenizer.of_text(TEXT), hidden_dim=32)
    model.compile(keras.optimizers.Adam(3e-3))
    tokens = tf.constant([model.tokenizer.encode(TEXT)])
    dataset = tf.data.Dataset.from_tensors({"tokens": tokens}).repeat(150)
    model.fit(dataset, verbose=0)
    assert model.generate("to be or", temperature=0, max_new_tokens=33) == TEXT[8:]


# -- prefill and decode ----------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_kv_cache_gives_the_logits_of_the_whole_text(positions):
    model = make(positions=positions)
    lengths = (1, 3, 7) if positions == "learned" else (1, 3, 7, 12, 13, 30)
    rows = prompts(*lengths)
    longest = max(lengths)
    padded = tf.constant([row + [-1] * (longest - len(row)) for row in rows])
    cache, logits, next_positions, _ = model.prefill(padded)
    texts = [list(row) for row in rows]
    for token in range(5 if positions == "learned" else 30):
        for index, text in enumerate(texts):
            whole = model({"tokens": tf.constant([text])})[0, -1]
            np.testing.assert_allclose(logits[index], whole, atol=1e-4)
        new = [(token + index) % 17 for index in range(len(rows))]
        cache, logits = model.decode_step(cache, tf.constant(new), next_positions)
        next_positions += 1
        for text, one in zip(texts, new, strict=True):
            text.append(one)


SETTINGS = {
    "temperature": [0.0, 0.7, 1.0, 1.3],
    "top_k": [0, 5, 0, 8],
    "top_p": [1.0, 1.0, 0.8, 0.95],
    "min_p": [0.0, 0.02, 0.0, 0.1],
    "repetition_penalty": [1.0, 1.2, 1.0, 0.9],
}


def generated_without_a_cache(model, prompt, seed, num_tokens, settings):
    """Runs the network over the whole text for each token."""
    text = list(prompt)
    for index in range(num_tokens):
        logits = model({"tokens": tf.constant([text])})[:, -1]
        seen = tf.constant([[token in text for token in range(17)]])
        keys = random.keys(seed, random.STREAM_GENERATE, index)
        sampling = {
            name: tf.constant([value], "int32" if name == "top_k" else "float32")
            for name, value in settings.items()
        }
        parameters = SamplingParameters(**sampling)
        text.append(int(next_tokens(logits, seen, keys[None], parameters)[0][0]))
    return text[len(prompt) :]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_generation_equals_generation_without_a_cache(jit_compile):
    model, rows = make(), prompts(2, 5, 12, 20)
    model.jit_compile = jit_compile
    limits = [CHUNK + 3, 3, 25, 1]
    received = model.generate(
        rows, max_new_tokens=limits, seeds=[4, 5, -6, 2**40], **SETTINGS
    )
    for index, (row, seed) in enumerate(zip(rows, [4, 5, -6, 2**40], strict=True)):
        settings = {name: values[index] for name, values in SETTINGS.items()}
        expected = generated_without_a_cache(model, row, seed, limits[index], settings)
        assert received[index].tolist() == expected


def test_a_row_depends_on_itself_alone():
    model, rows = make(), prompts(2, 5, 12, 20)
    together = model.generate(rows, max_new_tokens=15, seeds=[7, 8, 9, 10], top_k=6)
    for index, row in enumerate(rows):
        [alone] = model.generate([row], max_new_tokens=15, seeds=7 + index, top_k=6)
        np.testing.assert_array_equal(alone, together[index])
    # XLA gets one row of padding more.
    model.jit_compile = True
    compiled = model.generate(rows[:3], max_new_tokens=15, seeds=[7, 8, 9], top_k=6)
    np.testing.assert_array_equal(compiled, together[:3])
    # A longer continuation begins with the shorter one.
    [longer] = model.generate(rows[:1], max_new_tokens=30, seeds=7, top_k=6)
    np.testing.assert_array_equal(longer[:15], together[0])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_prompts_in_chunks_give_the_state_of_whole_ones(chunk, positions, monkeypatch):
    model = make(positions=positions)
    longest = 40 if positions == "rotary" else 11
    rows = padded([np.int32(one) for one in prompts(longest, 1, chunk, 7, 2 * chunk)])
    whole = model.prefill(tf.constant(rows))
    monkeypatch.setattr(gpt, "PREFILL_CHUNK", chunk)
    parts = model.prefill(tf.constant(rows))
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-4)
    slots = np.arange(12)[None] < np.minimum(whole.positions, 12)[:, None]
    for one, other in zip(parts.cache, whole.cache, strict=True):
        difference = abs(one - other).numpy() * slots[:, None, :, None]
        assert difference.max() < 1e-4


def test_prefill_of_a_long_prompt_takes_its_end(monkeypatch):
    model = make()
    reach = 2 * 11 + 1
    [long] = prompts(5 * reach)
    lengths = []
    prefill = model.prefill
    monkeypatch.setattr(
        model, "prefill", lambda tokens: lengths.append(tokens.shape) or prefill(tokens)
    )
    settings = {"repetition_penalty": 5.0, "top_k": 9}
    [received] = model.generate([long], max_new_tokens=10, seeds=1, **settings)
    monkeypatch.undo()
    values = {
        name: [value]
        for name, value in {
            "temperature": 1.0,
            "top_p": 1.0,
            "min_p": 0.0,
            **settings,
        }.items()
    }
    one = {name: value[0] for name, value in values.items()}
    assert received.tolist() == generated_without_a_cache(model, long, 1, 10, one)
    [end] = model.generate([long[-reach:]], max_new_tokens=10, seeds=1, top_k=9)
    [whole] = model.generate([long], max_new_tokens=10, seeds=1, top_k=9)
    np.testing.assert_array_equal(end, whole)
    # A prompt whose squared length would not fit in memory.
    assert len(model.generate([[3] * 300_000], max_new_tokens=2)[0]) == 2


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nothing_is_traced_twice(monkeypatch, jit_compile):
    model, traces = make(), []
    model.jit_compile = jit_compile
    extend = GPT.decode_step

    def counted(self, *args):
        traces.append(1)
        return extend(self, *args)

    monkeypatch.setattr(GPT, "decode_step", counted)
    model.generate(prompts(3), max_new_tokens=4)
    num_traces = len(traces)
    assert num_traces >= 1
    for rows, options in [
        (prompts(5, 9), {"temperature": 0.3, "seeds": 5}),
        (prompts(1), {"max_new_tokens": 9, "top_k": 3, "top_p": 0.4}),
        (prompts(30), {"min_p": 0.1, "repetition_penalty": 1.4}),
    ]:
        model.generate(rows, **options)
    assert len(traces) == num_traces


def test_beam_search_equals_a_search_by_hand():
    model = make(vocab_size=5)
    prompt = [1, 3]
    texts = [[a, b, c] for a in range(5) for b in range(5) for c in range(5)]
    scores = model.score([prompt + text for text in texts])
    [found] = model.generate([prompt], max_new_tokens=3, num_beams=5)
    [greedy] = model.generate([prompt], max_new_tokens=3, temperature=0)
    reached = dict(zip(map(tuple, texts), scores, strict=True))
    assert reached[tuple(found)] >= reached[tuple(greedy)]
    # Five beams keep each first token, then the five best of 25 ...
    beams = [[]]
    for _ in range(3):
        longer = [beam + [token] for beam in beams for token in range(5)]
        values = model.score([prompt + text for text in longer])
        beams = [longer[i] for i in np.argsort(-values)[:5]]
    assert found.tolist() == beams[0]
    both = model.generate([prompt, [2]], max_new_tokens=[3, 1], num_beams=5)
    assert both[0].tolist() == found.tolist()
    assert both[1].tolist() == [int(np.argmax(model({"tokens": tf.constant([[2]])})))]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_beams_of_a_row_do_not_depend_on_those_of_others(positions):
    model, rows = make(positions=positions, vocab_size=9), [[1], [3, 4], [5], [2] * 4]
    beams, limits = [1, 5, 2, 3], [8, 3, 7, 5]
    together = model.generate(rows, max_new_tokens=limits, num_beams=beams)
    for row, found, num_beams, limit in zip(rows, together, beams, limits, strict=True):
        [alone] = model.generate(
            [row] * 2, max_new_tokens=limit, num_beams=[num_beams, 2]
        )[:1]
        assert found.tolist() == alone.tolist() and len(found) == limit
    [greedy] = model.generate(rows[:1], max_new_tokens=8, temperature=0)
    assert together[0].tolist() == greedy.tolist()


# -- text ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_model():
    return make(tokenizer=CharTokenizer.of_text(TEXT), hidden_dim=16)


def test_a_text_gives_a_text_and_a_list_a_list(text_model):
    text = text_model.generate("to be", max_new_tokens=20, seeds=3)
    assert isinstance(text, str) and len(text) == 20
    assert text_model.generate(["to be"], max_new_tokens=20, seeds=3) == [text]
    [tokens] = text_model.generate(
        [text_model.tokenizer.encode("to be")], max_new_tokens=20, seeds=3
    )
    assert tokens.dtype == np.int32 and text_model.tokenizer.decode(tokens) == text
    assert text_model.generate([]) == []


def test_a_text_ends_before_its_stop_sequence(text_model):
    whole = text_model.generate("to be", max_new_tokens=60, seeds=3)
    stop = whole[21:23]
    short = text_model.generate("to be", max_new_tokens=60, seeds=3, stop=stop)
    assert short == whole[: whole.find(stop)]
    other = text_model.generate(
        ["to be", "or"], max_new_tokens=60, seeds=[3, 4], stop=[stop, "que"]
    )
    assert other[0] == short


def test_streamed_chunks_make_the_generated_text(text_model):
    whole = text_model.generate("not", max_new_tokens=50, seeds=1, top_k=5)
    chunks = list(text_model.stream("not", max_new_tokens=50, seed=1, top_k=5))
    assert "".join(chunks) == whole and len(chunks) > 3
    stop = whole[30:33]
    chunks = list(
        text_model.stream("not", max_new_tokens=50, seed=1, top_k=5, stop=stop)
    )
    assert "".join(chunks) == whole[: whole.find(stop)]


def test_scores_are_sums_of_log_probabilities(text_model):
    texts = ["to be", "or not to be", "t"]
    received = text_model.score(texts)
    for text, score in zip(texts, received, strict=True):
        tokens = tf.constant([text_model.tokenizer.encode(text)])
        log_probs = tf.nn.log_softmax(text_model({"tokens": tokens}))[0].numpy()
        picked = [log_probs[i, int(t)] for i, t in enumerate(tokens[0, 1:])]
        assert score == pytest.approx(sum(picked), rel=1e-5, abs=1e-6)


def test_a_loaded_model_generates_the_same(text_model, tmp_path):
    text_model.save(tmp_path / "m.keras")
    loaded = kgen.load(tmp_path / "m.keras")
    assert loaded.generate("to", seeds=2) == text_model.generate("to", seeds=2)


# -- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": None}, "`vocab_size` must be 2 or more, or follow"),
        ({"hidden_dim": 10}, "a multiple of 2 \\* num_heads, 4"),
        ({"positions": "sines"}, "positions='sines'"),
        ({"context": 0}, "context=0"),
        ({"context": 1, "positions": "learned"}, "2 or more with learned positions"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"tokens_per_character": 0.0}, "be above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0}, r"`top_p` must be .* in \(0, 1\].* Received: values from 0"),
        ({"top_p": 1.1}, "`top_p` .*from 1.1"),
        ({"temperature": -0.5}, "`temperature` must be finite numbers from 0"),
        ({"temperature": float("nan")}, "values from nan"),
        ({"top_k": 1.5}, "`top_k` must be integers"),
        ({"top_k": [1, 2]}, "2 rows, where 1 are needed"),
        ({"min_p": -0.1}, "`min_p` .*from -0.1"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` .*from 1 .*values from 0"),
        ({"top_q": 1}, "Received: top_q"),
        ({"seeds": [1, 2]}, "2 rows, where 1 are needed"),
        ({"seeds": 0.5}, "`seeds` must be integers"),
        ({"seeds": 2**63}, f"`seeds` .*from {2**63}"),
        ({"seeds": np.uint64(2**64 - 1)}, f"`seeds` .*from {2**64 - 1}"),
        ({"repetition_penalty": 1e40}, "`repetition_penalty` .*from inf"),
        ({"repetition_penalty": 1e-46}, "`repetition_penalty` .*above 0 .*from 0"),
        ({"max_new_tokens": 10**11}, "`max_new_tokens` .*from 100000000000"),
        ({"num_beams": 2.0}, "`num_beams` must be integers in .1, 15."),
        ({"num_beams": 0}, "`num_beams` .*values from 0"),
        ({"num_beams": 2, "top_k": 3}, "no sampling parameters"),
        ({"stop": ""}, "`stop` must not be empty"),
        ({"stop": "Z"}, "'Z'"),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(text_model, options, message):
    with pytest.raises(ValueError, match=message):
        text_model.generate("to", **options)


def test_invalid_prompts_are_refused(text_model):
    with pytest.raises(ValueError, match="a token at least"):
        text_model.generate("")
    with pytest.raises(ValueError, match="'Z'"):
        text_model.generate("Zebra")
    with pytest.raises(ValueError, match="must lie in"):
        text_model.generate([[99]])
    for one in ([1, 2, 3], b"abc"):
        with pytest.raises(ValueError, match="One row alone is a list in a list"):
            text_model.generate(one)
    with pytest.raises(ValueError, match="float64"):
        text_model.generate([[1.5, 2]])
    for number in (2**32 + 1, 2**40):
        with pytest.raises(ValueError, match=f"from {number} to {number}"):
            text_model.generate(np.array([[number]]))
    with pytest.raises(TypeError, match="continues one text.*Received: list"):
        next(text_model.stream(["to"]))
    with pytest.raises(TypeError, match="a model that has a tokenizer"):
        next(make().stream([1, 2]))
    with pytest.raises(
        ValueError, match="1 to 13 tokens in each. Received: rows of 14"
    ):
        make(positions="learned").score(prompts(14))
    with pytest.raises(ValueError, match="without a tokenizer takes tokens"):
        make().generate("to")
    with pytest.raises(ValueError, match="`stop` needs a tokenizer"):
        make().generate([[1]], stop="a")
    with pytest.raises(ValueError, match="context of 12 tokens. Received: 13"):
        make(positions="learned").generate(prompts(5), max_new_tokens=8)


def test_a_tokenizer_is_given_as_it_is(tmp_path):
    tokenizer = CharTokenizer.of_text("ab", ["<end>"])
    model = make(tokenizer=tokenizer)
    assert model.tokenizer is tokenizer and model.vocab_size == 3
    model.save(tmp_path / "model.keras")
    assert kgen.load(tmp_path / "model.keras").tokenizer == tokenizer
    with pytest.raises(TypeError, match="a tokenizer of kgen.data.*Received: str"):
        GPT(tokenizer="char")


def test_a_batch_of_another_kind_is_refused():
    model = make()
    model.compile()
    with pytest.raises(ValueError, match="`tokens` must be integers.*float32"):
        model.train_on_batch({"tokens": tf.zeros([2, 6])})
    with pytest.raises(ValueError, match=r"\[0, 16\].*values from 0 to 17"):
        model.train_on_batch({"tokens": tf.constant([[0, 17]])})
    assert int(model.step.numpy()) == 0
