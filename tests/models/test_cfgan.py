"""CFGAN: masks, losses and a step by hand, training, health, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

from kgen.models import CFGAN
from kgen.models.cfgan import _draw_others
from kgen.nn import random

ROWS = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 1]], np.float32)
ITEMS = tf.ragged.constant([[0, 1], [2], [1, 3, 4]])


def small(num_items=5, **arguments):
    """A CFGAN whose networks are a matrix each, unless units are given."""
    keras.utils.set_random_seed(0)
    defaults = {"generator_units": (), "discriminator_units": ()}
    return CFGAN(item_ids=range(num_items), **defaults | arguments)


def softplus(x):
    return np.logaddexp(0.0, x)


# -- the masks ----------------------------------------------------------------------


def test_a_share_of_the_unseen_items_is_drawn_and_no_seen_item():
    rng = np.random.default_rng(0)
    rows = (rng.random((200, 300)) < 0.2).astype(np.float32)
    keys = random.keys(0, random.STREAM_TRAIN, tf.range(200))
    drawn = _draw_others(rows, keys, 0.7).numpy()
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert not (drawn * rows).any()
    # 48,000 draws: a standard deviation of sqrt(.7 * .3 / 48000) = .002
    assert drawn.sum() / (1 - rows).sum() == pytest.approx(0.7, abs=0.008)
    # The draw depends on the user and the item, not on the rest of the batch.
    np.testing.assert_array_equal(
        _draw_others(rows[7:9], keys[7:9], 0.7).numpy(), drawn[7:9]
    )
    assert (drawn[0] != drawn[1]).any()


def test_shares_of_0_and_1_draw_no_and_all_unseen_items():
    keys = random.keys(0, random.STREAM_TRAIN, tf.range(3))
    np.testing.assert_array_equal(_draw_others(ROWS, keys, 0.0), np.zeros((3, 5)))
    np.testing.assert_array_equal(_draw_others(ROWS, keys, 1.0), 1 - ROWS)


def discriminator_inputs(model, batches):
    """Inputs of each call of the discriminator: [condition, row]."""
    model.compile(run_eagerly=True)
    layer, seen = model.discriminator.layers[0], []
    call = layer.call

    def recorded(inputs, **options):
        seen.append(np.array(inputs))
        return call(inputs, **options)

    layer.call = recorded
    for items in batches:
        model.train_on_batch({"items": items})
    return seen


def test_the_discriminator_receives_the_user_row_or_the_masked_scores():
    model = small(generator_steps=1, discriminator_steps=1, partial_masking=0.5)
    scores = model.score(ROWS)
    real, fake, _ = discriminator_inputs(model, [ITEMS])
    np.testing.assert_array_equal(real, np.concatenate([ROWS, ROWS], axis=1))
    np.testing.assert_array_equal(fake[:, :5], ROWS)
    through = fake[:, 5:] != 0
    assert through[ROWS > 0].all()
    assert 0 < through[ROWS == 0].sum() < 9
    np.testing.assert_allclose(fake[:, 5:], scores * through, atol=1e-6)


def test_masks_are_drawn_anew_for_each_update_of_each_step():
    model = small(60, discriminator_steps=2, generator_steps=3, partial_masking=0.5)
    seen = discriminator_inputs(model, [ITEMS, ITEMS])
    # A real and a generated row for the discriminator; a generated one for the other.
    assert len(seen) == 2 * (2 * 2 + 3)
    generated = [seen[step * 7 + call] for step in (0, 1) for call in (1, 3, 4, 5, 6)]
    assert len({(rows[:, 60:] != 0).tobytes() for rows in generated}) == 10


# -- losses and the step ---------------------------------------------------------------


def test_losses_of_linear_networks_by_hand():
    model = small(
        partial_masking=1.0, zero_reconstruction=1.0, output_activation="sigmoid"
    )
    matrix, offset = model.generator.get_weights()
    kernel, bias = model.discriminator.get_weights()
    bias += 0.3
    model.discriminator.set_weights([kernel, bias])
    model.compile()
    scores = expit(ROWS @ matrix + offset)
    real = np.concatenate([ROWS, ROWS], axis=1) @ kernel + bias
    fake = np.concatenate([ROWS, scores], axis=1) @ kernel + bias
    targets = tf.ragged.constant([[2], [0], [0]])
    logs = model.test_on_batch({"items": ITEMS, "targets": targets}, return_dict=True)
    expected = {
        "discriminator_loss": (softplus(-real) + softplus(fake)).mean(),
        "generator_loss": softplus(-fake).mean(),
        "zero_reconstruction": (scores**2 * (1 - ROWS)).sum() / 3,
        "distance": (((scores - ROWS) ** 2).sum(1) / ROWS.sum(1)).mean(),
    }
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-5), name
    # The rank of the one target among the items not in the user's history.
    unseen = np.where(ROWS > 0, -np.inf, scores)
    ranks = [(unseen[i] >= unseen[i, j]).sum() for i, j in enumerate((2, 0, 0))]
    ndcg = (1 / np.log2(np.array(ranks) + 1.0)).mean()
    assert float(logs["ndcg"]) == pytest.approx(ndcg, rel=1e-5)


@pytest.mark.parametrize(
    ("masking", "zeros"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_one_step_of_sgd_by_hand(masking, zeros, output, eagerly):
    model = small(
        output_activation=output,
        generator_steps=1,
        discriminator_steps=1,
        partial_masking=masking,
        zero_reconstruction=zeros,
        zero_reconstruction_weight=0.5,
        generator_weight_decay=0.01,
        discriminator_weight_decay=0.02,
    )
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2))
    matrix, offset = model.generator.get_weights()
    kernel, bias = model.discriminator.get_weights()
    model.train_step({"items": ITEMS})

    scores = ROWS @ matrix + offset
    if output == "sigmoid":
        scores = expit(scores)
    mask = ROWS + masking * (1 - ROWS)
    inputs_real = np.concatenate([ROWS, ROWS], axis=1)
    inputs_fake = np.concatenate([ROWS, scores * mask], axis=1)
    # softplus has the slope sigmoid.
    slope_real = -expit(-(inputs_real @ kernel + bias)) / 3
    slope_fake = expit(inputs_fake @ kernel + bias) / 3
    slope = inputs_real.T @ slope_real + inputs_fake.T @ slope_fake
    kernel = kernel - 0.2 * (slope + 2 * 0.02 * kernel)
    bias = bias - 0.2 * (slope_real + slope_fake).sum(0)
    for value, expected in zip(
        model.discriminator.get_weights(), (kernel, bias), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-6)

    # The generator is updated against the updated discriminator.
    slope_fake = -expit(-(inputs_fake @ kernel + bias)) / 3
    slope_scores = slope_fake * kernel[5:, 0] * mask
    slope_scores += 0.5 * zeros * (1 - ROWS) * 2 * scores / 3
    slope = slope_scores
    if output == "sigmoid":
        slope = slope * scores * (1 - scores)
    offset = offset - 0.1 * slope.sum(0)
    matrix = matrix - 0.1 * (ROWS.T @ slope + 2 * 0.01 * matrix)
    for value, expected in zip(
        model.generator.get_weights(), (matrix, offset), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_each_optimizer_updates_its_network_once_for_each_of_its_steps(eagerly):
    for frozen in ("generator", "discriminator"):
        rates = {"generator": 0.1, "discriminator": 0.1} | {frozen: 0.0}
        model = small(generator_steps=4, discriminator_steps=2)
        model.compile(*(keras.optimizers.SGD(rate) for rate in rates.values()))
        before = {name: getattr(model, name).get_weights() for name in rates}
        model.train_step({"items": ITEMS})
        for name, weights in before.items():
            after = getattr(model, name).get_weights()
            same = [np.array_equal(a, b) for a, b in zip(after, weights, strict=True)]
            assert all(same) if name == frozen else not any(same)
        assert int(model.generator_optimizer.iterations) == 4
        assert int(model.discriminator_optimizer.iterations) == 2
        assert int(model.step) == 1


# -- training --------------------------------------------------------------------------


def train(model, rows, num_steps):
    """Takes steps on a batch of these rows, and returns the logs of a test."""
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01))
    items = tf.RaggedTensor.from_value_rowids(
        tf.constant(np.nonzero(rows)[1]), np.nonzero(rows)[0], nrows=len(rows)
    )
    batches = tf.data.Dataset.from_tensors({"items": items})
    model.fit(batches.repeat(num_steps), verbose=0)
    logs = model.evaluate(batches, return_dict=True, verbose=0)
    return {name: float(value) for name, value in logs.items()}


def rows_of_groups(num_users=48):
    """Multi-hot rows of users, each with five of eight items of one of three groups."""
    rng = np.random.default_rng(0)
    rows = np.zeros((num_users, 24), np.float32)
    for user in range(num_users):
        rows[user, user % 3 * 8 + rng.permutation(8)[:5]] = 1
    return rows


def test_the_other_items_of_a_group_are_recommended():
    model = small(
        24, generator_units=(8,), discriminator_units=(16,), activation="tanh"
    )
    rows = rows_of_groups()
    logs = train(model, rows, 120)
    assert model.health(logs) == []
    found = model.recommend([np.flatnonzero(row) for row in rows], k=3).item_ids
    assert (found // 8 == np.arange(48)[:, None] % 3).mean() > 0.75  # 3 / 19 by chance
    # Also for unseen users.
    assert set(model.recommend([[8, 9, 10, 11]], k=4).item_ids[0]) == {12, 13, 14, 15}


def test_the_generator_learns_the_identity_without_partial_masking():
    # Random rows: a user's other items cannot be predicted.
    rows = (np.random.default_rng(0).random((32, 12)) < 0.3).astype(np.float32)
    rows[:, 0] = 1
    model = small(
        12,
        output_activation="sigmoid",
        partial_masking=0.0,
        zero_reconstruction=1.0,
        zero_reconstruction_weight=1.0,
        generator_weight_decay=0.0,
    )
    logs = train(model, rows, 200)
    assert logs["distance"] < 0.05
    (text,) = model.health(logs)
    assert "identity" in text


def test_scores_of_all_items_approach_1_without_masks():
    model = small(
        24,
        generator_units=(8,),
        discriminator_units=(16,),
        output_activation="sigmoid",
        partial_masking=0.0,
        zero_reconstruction=0.0,
    )
    rows = rows_of_groups()
    logs = train(model, rows, 100)
    # 19 items not in the history against five in it, without any mask.
    assert logs["distance"] > 0.5 * 19 / 5
    assert model.score(rows)[rows > 0].mean() > 0.9


# -- health and bad input ------------------------------------------------------------


def test_health_warns_of_an_imbalance_and_of_the_identity():
    model = small()
    fine = {"discriminator_loss": 1.2, "distance": 0.6}
    assert model.health(fine) == []
    for wrong, words in (
        ({"discriminator_loss": 4.0}, "discriminator fails"),
        ({"discriminator_loss": 0.05}, "discriminator wins"),
        ({"distance": 0.01}, "identity"),
    ):
        (text,) = model.health(fine | wrong)
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator_units": (4, 0)}, "generator_units.*at least 1"),
        ({"discriminator_units": (0,)}, "discriminator_units.*at least 1"),
        ({"zero_reconstruction": 1.1}, r"zero_reconstruction.*\[0, 1\]"),
        ({"zero_reconstruction_weight": -1.0}, "zero_reconstruction_weight.*0 or more"),
        ({"partial_masking": -0.1}, r"partial_masking.*\[0, 1\]"),
        ({"generator_steps": 0}, "generator_steps.*at least 1"),
        ({"discriminator_steps": 0}, "discriminator_steps.*at least 1"),
        ({"generator_weight_decay": -1.0}, "generator_weight_decay.*0 or more"),
        ({"discriminator_weight_decay": -1.0}, "discriminator_weight_decay.*0 or more"),
        ({"activation": "sigmoidal"}, "activation.*sigmoid"),
        ({"output_activation": "flat"}, "output_activation.*sigmoid"),
        ({"item_counts": [1, 2]}, "item_counts"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        small(**arguments)


def test_one_optimizer_for_both_networks_is_refused():
    optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="optimizer of its own"):
        small().compile(optimizer, optimizer)


def test_a_model_is_made_again_from_its_configuration():
    model = small(item_counts=[5, 4, 3, 2, 1], partial_masking=0.25)
    again = CFGAN.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert again.partial_masking == 0.25
    assert again.item_counts == [5, 4, 3, 2, 1]
