"""RecVAE: prior and weights by hand, alternation, and recommendations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import log_softmax

import kgen
from kgen.models import RecVAE
from kgen.models.recvae import (
    DeterministicAdd,
    DeterministicSplit,
    composite_log_density,
)
from kgen.nn import Adam
from kgen.nn.interactions import normalized_multi_hot

NUM_ITEMS = 6


def small(**arguments):
    keras.utils.set_random_seed(0)
    options = {"hidden_dim": 4, "num_layers": 2, "latent_dim": 2, "input_dropout": 0.5}
    return RecVAE(**{"item_ids": range(NUM_ITEMS)} | options | arguments)


def users():
    return tf.ragged.constant([[0, 1, 2], [3], [4, 5], [1, 5]], dtype=tf.int32)


def weights_of(network):
    return [weight.copy() for weight in network.get_weights()]


def moved(network, before):
    pairs = zip(network.get_weights(), before, strict=True)
    return any(not np.array_equal(new, old) for new, old in pairs)


# -- the bound ---------------------------------------------------------------------


def test_composite_prior_is_the_mixture_of_three_normals():
    latents = np.array([[0.3, -2.0], [40.0, 1.0]])
    mean, log_variance = np.array([[0.5, -1.0], [1.0, 3.0]]), np.array([[-1, 0.5]] * 2)
    received = composite_log_density(
        *(tf.constant(v, tf.float32) for v in (latents, mean, log_variance)),
        (0.15, 0.75, 0.1),
    )
    density = (
        0.15 * stats.norm.pdf(latents)
        + 0.75 * stats.norm.pdf(latents, mean, np.exp(log_variance / 2))
        + 0.1 * stats.norm.pdf(latents, scale=np.exp(5.0))
    )
    np.testing.assert_allclose(received, np.log(density), rtol=1e-5)


def constant_model(**arguments):
    """A model with equal posteriors for all users: N(1, 1), and N(0, 4) before."""
    model = small(**arguments)
    model.compile()
    for encoder, bias in (
        (model.encoder, [1, 1, 0, 0]),
        (model.old_encoder, [0, 0, np.log(4), np.log(4)]),
    ):
        kernel, _ = encoder.layers[-1].get_weights()
        encoder.layers[-1].set_weights([0 * kernel, np.array(bias)])
    return model


def test_the_loss_by_hand():
    model = constant_model()
    keys = tf.range(4, dtype=tf.int64)
    noise = kgen.nn.random.normal(keys, (2,)).numpy()
    terms, mean = model._bound(users(), keys, dropout=0.0, training=False)
    np.testing.assert_array_equal(mean, np.ones([4, 2]))
    latents = 1.0 + noise
    prior = (
        0.15 * stats.norm.pdf(latents)
        + 0.75 * stats.norm.pdf(latents, scale=2.0)
        + 0.1 * stats.norm.pdf(latents, scale=np.exp(5.0))
    )
    kl = (stats.norm.logpdf(latents, loc=1.0) - np.log(prior)).sum(axis=1)
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-4)
    # Half of the squared mean in each of two dimensions.
    np.testing.assert_allclose(terms["standard_kl"], [1.0] * 4, rtol=1e-6)
    kernel, bias = model.decoder.get_weights()
    logs = log_softmax(latents @ kernel + bias, axis=1)
    lost = [-logs[row, items].sum() for row, items in enumerate(users().to_list())]
    np.testing.assert_allclose(terms["reconstruction"], lost, rtol=1e-5)
    loss = np.array(lost) + 0.005 * np.array([3, 1, 2, 2]) * kl
    np.testing.assert_allclose(terms["loss"], loss, rtol=1e-5)


def test_the_kl_weight_is_by_item_or_equal_for_all_users():
    weights = small(kl_weight_per_item=0.1)._kl_weights(users())
    np.testing.assert_allclose(weights, [0.3, 0.1, 0.2, 0.2], rtol=1e-6)
    assert small(kl_weight=0.4)._kl_weights(users()) == 0.4


def test_each_encoder_layer_adds_all_earlier_outputs():
    # y1 = norm(swish(x1)), x2 = y1 W2 + y1, x3 = y2 W3 + y1 + y2, and so on.
    model = small(num_layers=4)
    weights = iter(model.encoder.get_weights())
    rows = np.eye(NUM_ITEMS)
    values, outputs = rows, []
    for _ in range(4):
        values = values @ next(weights) + next(weights) + sum(outputs)
        values = values / (1 + np.exp(-values))
        values = values - values.mean(axis=1, keepdims=True)
        values = values / np.sqrt((values**2).mean(axis=1, keepdims=True) + 0.1)
        outputs.append(values * next(weights) + next(weights))
        values = outputs[-1]
    expected = values @ next(weights) + next(weights)
    np.testing.assert_allclose(model.encoder(rows), expected, atol=1e-5)


def test_input_rows_have_unit_norm_and_dropout_of_items():
    whole = normalized_multi_hot(users(), NUM_ITEMS).numpy()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-6)
    assert {*np.flatnonzero(whole[2])} == {4, 5}
    many = tf.ragged.constant([[*range(NUM_ITEMS)]] * 2000, dtype=tf.int32)
    keys = kgen.nn.random.keys(tf.range(2000, dtype=tf.int64))
    rows = normalized_multi_hot(many, NUM_ITEMS, keys, dropout=0.75).numpy()
    # Kept items have four times 1 / sqrt(6); of 12,000 coins a share of .25 +- .004.
    np.testing.assert_allclose(np.unique(rows), [0, 4 / np.sqrt(6)], rtol=1e-6)
    assert (rows > 0).mean() == pytest.approx(0.25, abs=0.016)


# -- alternation -------------------------------------------------------------------


def test_each_step_updates_one_network_and_the_first_decoder_step_copies_the_encoder():
    model = small(encoder_steps=3, decoder_steps=2)
    model.compile("sgd", "sgd")
    seen = []
    for _ in range(10):
        networks = model.encoder, model.decoder, model.old_encoder
        before = [weights_of(network) for network in networks]
        model.train_on_batch(users())
        seen.append([moved(*pair) for pair in zip(networks, before, strict=True)])
    encoder, first, later = [1, 0, 0], [0, 1, 1], [0, 1, 0]
    np.testing.assert_array_equal(seen, [*[encoder] * 3, first, later] * 2)
    for old, new in zip(model.old_encoder.weights, model.encoder.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    counts = [int(optimizer.iterations) for optimizer in model.optimizers]
    assert counts == [6, 4]


def test_the_alternation_continues_after_loading(tmp_path):
    model = small(encoder_steps=3, decoder_steps=2)
    model.compile("sgd", "sgd")
    for _ in range(4):
        model.train_on_batch(users())
    model.save(tmp_path / "recvae.keras")
    loaded = kgen.load(tmp_path / "recvae.keras")
    assert not moved(loaded.old_encoder, weights_of(model.old_encoder))
    # The fifth step is the decoder's second, the sixth the encoder's.
    steps = [(loaded.decoder, loaded.encoder), (loaded.encoder, loaded.decoder)]
    for updated, fixed in steps:
        before = weights_of(updated), weights_of(fixed)
        loaded.train_on_batch(users())
        model.train_on_batch(users())
        assert moved(updated, before[0])
        assert not moved(fixed, before[1])
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


# -- use ---------------------------------------------------------------------------


def test_the_other_items_of_a_group_are_recommended():
    """Two groups of eight items; each user interacts with five or six of one group."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(8)[: 5 + i % 2] + 8 * (i % 2) for i in range(64)]
    batch = tf.ragged.constant([row.tolist() for row in rows], dtype=tf.int32)
    model = small(item_ids=range(16), hidden_dim=16)
    model.compile(Adam(1e-2), Adam(3e-2), steps_per_execution=120)
    model.fit(tf.data.Dataset.from_tensors(batch).repeat(120), verbose=0)
    best = model.recommend([[0, 1, 2], [8, 9, 10]], k=5)
    assert {*best.item_ids[0]} == {3, 4, 5, 6, 7}
    assert {*best.item_ids[1]} == {11, 12, 13, 14, 15}
    rows = np.eye(16, dtype=np.float32)[[[0, 1, 2]]].sum(axis=1)
    assert {*np.argsort(model.score(rows)[0])[-8:]} == {*range(8)}


def test_validation_logs_the_ndcg_of_the_targets():
    model = small()
    model.compile()
    targets = tf.ragged.constant([[3], [], [0], [2]], dtype=tf.int32)
    batch = {"items": users(), "targets": targets}
    logs = model.test_on_batch(batch, return_dict=True)
    again = model.test_on_batch(batch, return_dict=True)
    assert 0 < float(logs["ndcg"]) < 1
    assert float(logs["loss"]) == float(again["loss"])


def test_health_warns_of_posterior_collapse():
    model = small()
    assert model.health({"kl": 0.0, "standard_kl": 5.0}) == []
    (text,) = model.health({"kl": 20.0, "standard_kl": 0.05})
    assert "posterior collapse" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 0}, "at least 1"),
        ({"num_layers": 0}, "at least 1"),
        ({"latent_dim": 0}, "at least 1"),
        ({"encoder_steps": 0}, "at least 1"),
        ({"decoder_steps": 0}, "at least 1"),
        ({"input_dropout": 1.0}, r"\[0, 1\)"),
        ({"kl_weight_per_item": -0.1}, "0 or more"),
        ({"kl_weight": -1.0}, "0 or more, and finite"),
        ({"prior_weights": (0.5, 0.5)}, "three shares"),
        ({"prior_weights": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"prior_weights": (1.0, 0.0, 0.0)}, "above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_one_optimizer_for_both_networks_is_refused():
    optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="an optimizer of its own"):
        small().compile(optimizer, optimizer)


# -- deterministic sums ------------------------------------------------


def test_split_sums_its_gradients_and_add_passes_its_gradient_on():
    inputs = tf.constant([[1.0, -2.0]])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        first, second = DeterministicSplit()(inputs)
        total = DeterministicAdd()([3.0 * first, second * second])
    np.testing.assert_array_equal(total, [[4.0, -2.0]])  # 3 x + x^2
    np.testing.assert_array_equal(tape.gradient(total, inputs), [[5.0, -1.0]])


def test_chains_of_split_and_add_hold_no_addition():
    def gradient(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = inputs
            for _ in range(3):
                first, second = DeterministicSplit()(total)
                total = DeterministicAdd()([tf.tanh(first), second])
        return tape.gradient(total, inputs)

    graph = tf.function(gradient).get_concrete_function(tf.TensorSpec([None, 2])).graph
    operations = graph.get_operations()  # shapes are integers
    floats = [o for o in operations if o.outputs and o.outputs[0].dtype.is_floating]
    kinds = {operation.type for operation in floats}
    assert {"Tanh", "TanhGrad"} <= kinds
    assert not kinds & {"Add", "AddV2", "AddN"}
