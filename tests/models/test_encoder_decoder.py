"""An encoder-decoder on the shared decoding engine: it copies its source backwards."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kgen import export
from kgen.arguments import PositiveInt
from kgen.models.shared.generation import TextGenerationMixin
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import StateSpec, TokenSpec
from kgen.nn.decoding import DecodingState, beam_search, multi_hot_tokens
from kgen.nn.layers import layers_of_policy
from kgen.nn.transformer import TransformerBlock, slot_writer, tied_logits

END, START = 0, 1
SOURCE_LENGTH = 5


@keras.saving.register_keras_serializable(package="kgen.tests")
class Reverser(TextGenerationMixin, GenerativeModel):
    """Maps source tokens to target tokens, which end with END."""

    end_id = END
    is_endless = True
    tokenizer = None
    dropout = 0.0

    def __init__(
        self,
        *,
        vocab_size: PositiveInt = 7,
        context: PositiveInt = 8,
        num_layers: PositiveInt = 1,
        num_heads: PositiveInt = 2,
        hidden_dim: PositiveInt = 32,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.highest_token = vocab_size - 1
        tokens = TokenSpec(high=self.highest_token)
        self.batch_specs = {"tokens": tokens, "targets": tokens}
        self.make_transformer(rotary=False)
        with layers_of_policy(self.dtype_policy):
            self.decoder_blocks = [
                TransformerBlock(num_heads, cross_attention=True)
                for _ in range(num_layers)
            ]
        for block in self.decoder_blocks:
            block.build((None, None, hidden_dim))
        self.add_log_metrics("loss")

    def train_step(self, data):
        batch = self.read(data)
        with self.recording() as recording:
            losses, weights = self.token_losses(batch)
        recording.minimize(losses, weights)
        self.finish_step(losses)
        return self.log({"loss": losses}, training=True, weights=weights)

    def token_losses(self, batch):
        targets = batch["targets"]
        started = tf.pad(targets[:, :-1], [[0, 0], [1, 0]], constant_values=START)
        logits = self.logits(batch["tokens"], tf.maximum(started, 0))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(targets, 0), logits
        )
        return losses, tf.cast(targets >= 0, tf.float32)

    def logits(self, source, tokens):
        """Logits of the token after each target token, without a cache."""
        memory, memory_mask = self.encoded(source)
        positions = tf.range(tf.shape(tokens)[1])[None]
        mask = positions[..., None] >= positions[:, None]
        hidden = self.embedding(tokens) + self.position_embedding(positions)
        for block, one in zip(self.decoder_blocks, memory, strict=True):
            hidden, _ = block(
                hidden, positions, mask, memory=one, memory_mask=memory_mask
            )
        return tied_logits(self.norm(hidden), self.embedding.embeddings)

    def encoded(self, source):
        is_token = source >= 0
        positions = tf.cumsum(tf.cast(is_token, tf.int32), axis=1, reverse=True)
        hidden = self.embedding(tf.maximum(source, 0))
        hidden += self.position_embedding(tf.maximum(positions - 1, 0))  # from the end
        for block in self.blocks:
            hidden, _ = block(hidden, positions, is_token[:, None])
        memory = [block.memory_of(hidden) for block in self.decoder_blocks]
        return memory, is_token

    # -- prefill and decode -----------------------------------------------------

    def prefill(self, tokens):
        memory, memory_mask = self.encoded(tokens)
        num_rows, dim = tf.shape(tokens)[0], self.hidden_dim // self.num_heads
        shape = [num_rows, self.num_heads, self.context, dim]
        empty = [tf.zeros(shape, self.compute_dtype)] * 2 * self.num_layers
        cache = {"own": empty, "memory": memory, "mask": memory_mask}
        start, none = tf.fill([num_rows], START), tf.zeros([num_rows], tf.int32)
        cache, logits = self.decode_step(cache, start, none)
        seen = multi_hot_tokens(start[:, None], self.vocab_size)
        return DecodingState(cache, logits, none + 1, seen)

    def decode_step(self, cache, tokens, positions):
        positions = positions[:, None]
        mask = (tf.range(self.context)[None] <= positions)[:, None]
        hidden = self.embedding(tf.maximum(tokens, 0)[:, None])
        hidden += self.position_embedding(tf.minimum(positions, self.context - 1))
        extended = []
        for index, block in enumerate(self.decoder_blocks):
            write = slot_writer(cache["own"][2 * index :][:2], positions[:, 0])
            hidden, seen = block(
                hidden,
                positions,
                mask,
                cache=write,
                memory=cache["memory"][index],
                memory_mask=cache["mask"],
            )
            extended += seen
        logits = tied_logits(self.norm(hidden[:, 0]), self.embedding.embeddings)
        return {**cache, "own": extended}, logits

    def cache_specs(self):
        dim, dtype = self.hidden_dim // self.num_heads, self.compute_dtype
        memory = (2 * self.num_layers, self.num_heads, None, dim)
        return {
            **super().cache_specs(),
            "memory": StateSpec(memory, dtype),
            "memory_mask": StateSpec((None,), "bool"),
        }

    def packed_cache(self, cache):
        memory = tf.stack([one for pair in cache["memory"] for one in pair], axis=1)
        return {
            **super().packed_cache(cache["own"]),
            "memory": memory,
            "memory_mask": cache["mask"],
        }

    def unpacked_cache(self, tensors):
        memory = tf.unstack(tensors["memory"], axis=1)
        return {
            "own": list(super().unpacked_cache(tensors)),
            "memory": list(zip(memory[::2], memory[1::2], strict=True)),
            "mask": tensors["memory_mask"],
        }

    def transformer_layers(self):
        return (*super().transformer_layers(), *self.decoder_blocks)

    def signatures(self) -> list[Signature]:
        return self.generation_signatures()


def pairs(number, seed=0):
    """Sources of 1 to 5 tokens, and the same backwards with END."""
    rng = np.random.default_rng(seed)
    sources = np.full((number, SOURCE_LENGTH), -1, np.int32)
    targets = np.full((number, SOURCE_LENGTH + 1), -1, np.int32)
    for source, target in zip(sources, targets, strict=True):
        size = rng.integers(1, SOURCE_LENGTH + 1)
        source[:size] = rng.integers(2, 7, size)
        target[: size + 1] = [*source[:size][::-1], END]
    return {"tokens": sources, "targets": targets}


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = Reverser()
    for table in (model.embedding.embeddings, model.position_embedding.embeddings):
        table.assign(20 * table)  # As they begin, blocks learn to tell them apart late.
    model.compile(keras.optimizers.Adam(5e-3), jit_compile=True)
    data = tf.data.Dataset.from_tensor_slices(pairs(2048)).batch(128)
    model.fit(data, epochs=9, verbose=0)
    return model


def test_it_copies_its_source_backwards_with_and_without_beams(trained):
    held_out = pairs(64, seed=1)
    sources = [row[row >= 0].tolist() for row in held_out["tokens"]]
    for options in ({"temperature": 0}, {"num_beams": 4, "length_penalty": 0.6}):
        found = trained.generate(sources, max_new_tokens=7, **options)
        right = [
            row.tolist() == source[::-1]
            for row, source in zip(found, sources, strict=True)
        ]
        assert np.mean(right) > 0.95


def test_steps_with_a_cache_are_those_of_the_whole_text(trained):
    batch = {k: tf.constant(v) for k, v in pairs(8, seed=2).items()}
    started = tf.pad(batch["targets"][:, :-1], [[0, 0], [1, 0]], constant_values=START)
    started = tf.maximum(started, 0)
    expected = trained.logits(batch["tokens"], started)
    state = trained.prefill(batch["tokens"])
    cache, logits = state.cache, state.logits
    for index in range(1, started.shape[1]):
        np.testing.assert_allclose(logits, expected[:, index - 1], atol=1e-4)
        positions = tf.fill([8], index)
        cache, logits = trained.decode_step(cache, started[:, index], positions)


def random_model(seed=52):
    """Weights for which the likeliest next tokens seldom make the likeliest text."""
    model, rng = Reverser(vocab_size=4, hidden_dim=8), np.random.default_rng(seed)
    tables = [model.embedding.embeddings, model.position_embedding.embeddings]
    for variable in model.trainable_variables:
        if len(variable.shape) == 2:
            scale = 0.7 if any(variable is table for table in tables) else 1.0
            variable.assign(rng.normal(0, scale, variable.shape))
    return model


def test_beams_find_the_best_texts_of_all(max_tokens=4, alpha=0.6):
    model, sources = random_model(), pairs(32, seed=3)["tokens"]
    sources = tf.constant(np.where(sources < 0, -1, sources % 4))
    texts = [
        text[: text.index(END) + 1] if END in text else text
        for text in itertools.product(range(4), repeat=max_tokens)
    ]
    texts = sorted({*texts})
    tokens = np.array([[*text, *[0] * (max_tokens - len(text))] for text in texts])
    started = np.c_[np.full(len(texts), START), tokens[:, :-1]]

    def every_score(source):
        source = tf.repeat(source[None], len(texts), axis=0)
        log_probs = tf.nn.log_softmax(model.logits(source, tf.constant(started)))
        picked = tf.gather(log_probs, tokens, batch_dims=2).numpy()
        lengths = np.array([len(text) for text in texts])
        picked *= np.arange(max_tokens) < lengths[:, None]
        return picked.sum(axis=1) / ((5 + lengths) / 6) ** alpha

    numbers = {"max_tokens": max_tokens, "num_beams": 4 ** (max_tokens - 1)}
    found = beam_search(
        model.decode_step,
        model.prefill(sources),
        **{name: tf.fill([32], number) for name, number in numbers.items()},
        length_penalty=tf.fill([32], alpha),
        end_token=END,
    )
    greedy = model.generate(
        [row[row >= 0] for row in sources.numpy()],
        max_new_tokens=max_tokens,
        temperature=0,
    )
    greedy_is_best = []
    for row in range(32):
        scores = every_score(sources[row])
        order = np.argsort(-scores)[:5]  # the n best
        expected = [[token for token in texts[i] if token != END] for i in order]
        received = [text[text >= 0].tolist() for text in found.tokens[row, :5].numpy()]
        np.testing.assert_allclose(found.scores[row, :5], scores[order], rtol=1e-4)
        assert received == expected
        greedy_is_best.append(greedy[row].tolist() == expected[0])
    assert np.mean(greedy_is_best) < 2 / 3
    search = model.run(
        "beam_search",
        tokens=sources,
        max_new_tokens=max_tokens,
        num_beams=4,
        length_penalty=alpha,
    )["generated"]
    assert search.shape == (32, max_tokens)


def test_exports_generate_as_keras_does(trained, tmp_path):
    """The exporter compares all signatures, those with the encoder's memory too."""
    export.to_saved_model(trained, tmp_path / "model")
    export.to_onnx(trained, tmp_path / "model.onnx")
    names = {one.name for one in trained.signatures()}
    assert names == {"generate", "beam_search", "prefill", "decode"}
