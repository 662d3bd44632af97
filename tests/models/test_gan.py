"""GAN: losses, penalties and a step by hand, custom networks, health, errors."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import kgen
from kgen import training
from kgen.models import GAN
from kgen.nn import PerExampleGradient, adversarial
from kgen.nn.adversarial_networks import NETWORKS, sizes_that_work
from kgen.nn.layers import BatchNormalization

SHAPE = (8, 8, 1)


def images(num_images=8, shape=SHAPE):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num_images, *shape), dtype=np.uint8)


def small(**arguments):
    keras.utils.set_random_seed(0)
    return GAN(image_shape=SHAPE, latent_dim=3, base_channels=4, **arguments)


# -- losses: log(1 + e^x) = softplus(x) by hand at logits of 2 and -1 ------------


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        # softplus(-2) + softplus(-1); log(1 - sigmoid(-1)) = -softplus(-1)
        ("minimax", 0.126928 + 0.313262, -0.313262),
        ("non_saturating", 0.126928 + 0.313262, 1.313262),
        # ((2 - 1)^2 + (-1)^2) / 2 and (-1 - 1)^2 / 2
        ("least_squares", 1.0, 2.0),
        # max(0, 1 - 2) + max(0, 1 - 1)
        ("hinge", 0.0, 1.0),
        ("wasserstein", -3.0, 1.0),
        # softplus(-(2 + 1)) and softplus(2 + 1)
        ("relativistic", 0.048587, 3.048587),
    ],
)
def test_a_loss_by_hand(name, discriminator, generator):
    real, fake = tf.constant([[2.0]]), tf.constant([[-1.0]])
    received = adversarial.ADVERSARIAL_LOSSES[name](real, fake)
    np.testing.assert_allclose(received, [[discriminator], [generator]], atol=1e-6)


def test_float16_logits_are_computed_in_float32():
    logits = tf.constant([[300.0]], tf.float16)
    for loss in adversarial.ADVERSARIAL_LOSSES.values():
        for values in loss(logits, -logits):
            assert values.dtype == tf.float32
            assert np.isfinite(values).all()  # 300^2 is above float16's largest


def test_penalties_of_a_quadratic_score_are_its_analytic_gradient():
    # score(x) = sum(w x^2) / 2 has the gradient w x.
    weight = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3)
    scores, gradients = adversarial.with_gradients(
        lambda x: tf.reduce_sum(0.5 * weight * x**2, axis=[1, 2, 3]), tf.constant(x)
    )
    norm = np.sqrt(np.sum((weight * x) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(scores, np.sum(0.5 * weight * x**2, (1, 2, 3)), 1e-6)
    np.testing.assert_allclose(
        adversarial.zero_centred_penalty(gradients), norm**2 / 2, 1e-6
    )
    np.testing.assert_allclose(
        adversarial.one_centred_penalty(gradients), (norm - 1) ** 2, 1e-5
    )


def test_a_penalty_of_no_gradient_has_a_finite_gradient_itself():
    weight = tf.Variable(0.0)
    with tf.GradientTape() as tape:
        _, gradients = adversarial.with_gradients(
            lambda x: weight * tf.reduce_sum(x, axis=1), tf.ones([1, 2])
        )
        penalty = adversarial.one_centred_penalty(gradients)
    assert np.isfinite(tape.gradient(penalty, weight))


def linear_networks():
    generator = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(64), keras.layers.Reshape(SHAPE)]
    )
    discriminator = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    return {"generator": generator, "discriminator": discriminator}


@pytest.mark.parametrize(
    ("weights", "factor"),
    [
        ({"r1_weight": 3.0}, lambda norm: 3.0 * norm**2 / 2),
        ({"r2_weight": 2.0}, lambda norm: 2.0 * norm**2 / 2),
        ({"r1_weight": 1.0, "r2_weight": 1.0}, lambda norm: norm**2),
        ({"gradient_penalty_weight": 10.0}, lambda norm: 10.0 * (norm - 1) ** 2),
    ],
)
@pytest.mark.parametrize("loss", adversarial.ADVERSARIAL_LOSSES)
def test_any_penalty_of_a_linear_discriminator_is_known(loss, weights, factor):
    # The gradient of a linear score is its kernel, whatever the image.
    model = small(adversarial_loss=loss, **weights, **linear_networks())
    model.compile(run_eagerly=True)
    norm = np.linalg.norm(model.discriminator.get_weights()[0])
    logs = model.train_on_batch({"images": images()}, return_dict=True)
    assert float(logs["penalty"]) == pytest.approx(factor(norm), rel=1e-5)


def test_penalties_follow_their_schedule():
    model = small(
        r1_weight=1.0, final_penalty=0.2, penalty_decay_images=32, **linear_networks()
    )
    still = keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0)
    model.compile(*still)
    values = []
    for _ in range(6):
        model.reset_metrics()
        logs = model.train_on_batch({"images": images()}, return_dict=True)
        values.append(float(logs["penalty"]))
    # Half a cosine from 1 to 0.2 over 32 images, 8 a step, and then no further.
    progress = np.minimum(np.arange(6) * 8 / 32, 1.0)
    expected = 0.2 + 0.8 * 0.5 * (1 + np.cos(math.pi * progress))
    np.testing.assert_allclose(np.array(values) / values[0], expected, rtol=1e-5)


# -- the step ---------------------------------------------------------------------


def test_one_step_of_sgd_by_hand():
    # Linear networks and the Wasserstein loss: all gradients in closed form.
    model = small(adversarial_loss="wasserstein", ema_half_life=0, **linear_networks())
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.5))
    kernel, bias = model.discriminator.get_weights()
    matrix, offset = model.generator.get_weights()
    real = images().reshape(8, 64) / 127.5 - 1.0
    made = []
    model.generator.layers[-1].call = _recording(model.generator.layers[-1], made)
    model.run_eagerly = True
    model.train_on_batch({"images": images()})
    fake = made[0].reshape(8, 64)
    # D minimises mean(fake @ k) - mean(real @ k); its bias has no gradient.
    new_kernel = kernel - 0.5 * (fake.mean(0) - real.mean(0))[:, None]
    after = model.discriminator.get_weights()
    np.testing.assert_allclose(after[0], new_kernel, atol=1e-6)
    np.testing.assert_allclose(after[1], bias, atol=1e-7)
    # G then minimises -mean(fake @ new kernel): the offset's gradient is -new kernel.
    _, new_offset = model.generator.get_weights()
    np.testing.assert_allclose(new_offset, offset + 0.1 * new_kernel[:, 0], atol=1e-6)
    assert len(made) == 1, "the images were made more than once"
    assert matrix.shape == (3, 64)


def _recording(layer, made):
    call = layer.call

    def recorded(inputs, **options):
        outputs = call(inputs, **options)
        made.append(np.array(outputs))
        return outputs

    return recorded


def count_scores(**arguments):
    """How often a step applies the discriminator to a batch."""
    networks = linear_networks()
    counted = networks["discriminator"].layers[-1]
    model = small(**arguments, **networks)
    model.compile(run_eagerly=True)
    made = []
    counted.call = _recording(counted, made)
    model.train_on_batch({"images": images()})
    return len(made)


def test_no_image_is_scored_without_need():
    # Real and generated for the discriminator, and generated again once it has learned.
    assert count_scores() == 3
    assert count_scores(r1_weight=1.0, r2_weight=1.0) == 3  # the same passes, reused
    assert count_scores(gradient_penalty_weight=1.0) == 4  # and those in between
    assert count_scores(adversarial_loss="relativistic") == 4  # its pairs, again
    assert count_scores(discriminator_steps=2) == 5


def test_each_update_of_the_discriminator_sees_rows_of_its_own():
    networks = linear_networks()
    first = networks["discriminator"].layers[0]
    model = small(discriminator_steps=2, **networks)
    model.compile(run_eagerly=True)
    seen = []
    call = first.call
    first.call = lambda inputs: (seen.append(np.array(inputs)), call(inputs))[1]
    batch = images()
    model.train_on_batch({"images": batch})
    scaled = batch / 127.5 - 1.0
    np.testing.assert_allclose(seen[0], scaled[::2], atol=1e-6)
    np.testing.assert_allclose(seen[2], scaled[1::2], atol=1e-6)


def test_the_average_generator_has_the_half_life_in_images():
    model = small(ema_half_life=4, generator_normalization="none")
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
    model.examples_seen.assign(10**6)  # past the ramp
    before = [weight.numpy() for weight in model.average_generator.weights]
    model.train_on_batch({"images": images()})
    for average, old, new in zip(
        model.average_generator.weights, before, model.generator.weights, strict=True
    ):
        # Two half-lives of 4 images: a quarter stays.
        expected = 0.25 * old + 0.75 * new.numpy()
        np.testing.assert_allclose(average.numpy(), expected, atol=1e-6)


def test_generate_uses_the_average_of_the_generator():
    model = small()
    model.compile()
    before = model.generate(range(4))
    model.generator.set_weights([w + 0.5 for w in model.generator.get_weights()])
    np.testing.assert_array_equal(model.generate(range(4)), before)


def test_truncation_is_chosen_by_row_and_a_wide_one_changes_nothing():
    model = small()
    free = model.generate(range(3))
    bounds = [1e4, 0.1, 1e4]
    mixed = model.generate(range(3), truncation=bounds)
    np.testing.assert_array_equal(mixed[[0, 2]], free[[0, 2]])
    assert np.abs(mixed[1] - free[1]).max() > 1e-3
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`truncation` must be .*above 0"):
            model.generate(range(3), truncation=wrong)


# -- networks ----------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3), (64, 32, 3), (128, 128, 3)])
def test_networks_make_and_score_images_of_a_shape(network, shape):
    generator, discriminator = NETWORKS[network]
    made = generator(5, shape, None, 2, "none")
    assert made.output_shape == (None, *shape)
    assert discriminator(shape, None, 2, "none").output_shape == (None, 1)


def test_sizes_that_work():
    kept = [size for size in range(4, 140) if sizes_that_work((size, size, 1))]
    # 4 to 7 pixels times a power of two; 8 is 4 twice.
    grids = {grid * 2**k for grid in (4, 5, 6, 7) for k in range(1, 6)}
    grids |= {6, 12, 24, 48, 96} | {48 * 2}
    assert set(kept) == {size for size in grids if 8 <= size <= 128}


def test_there_is_no_bias_before_a_batch_norm():
    for generator, discriminator in (NETWORKS["dcgan"], NETWORKS["residual"]):
        options = ((16, 16, 1), None, 4, "batch")
        for model in (generator(5, *options), discriminator(*options)):
            for layer in model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    assert type(layer) is BatchNormalization  # over all replicas
                    before = layer.input._keras_history.operation
                    assert not getattr(before, "use_bias", False), before.name


def test_own_networks_of_three_layers_continue_after_load(tmp_path):
    networks = {
        "generator": keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(16, "relu"),
                keras.layers.Dense(64, "tanh"),
                keras.layers.Reshape(SHAPE),
            ]
        ),
        "discriminator": keras.Sequential(
            [
                keras.Input(SHAPE),
                keras.layers.Flatten(),
                keras.layers.Dense(16, "relu"),
                keras.layers.Dense(1),
            ]
        ),
    }
    model = small(**networks)
    model.compile(keras.optimizers.Adam(1e-2), keras.optimizers.Adam(2e-2))
    model.fit(images(16), epochs=2, batch_size=8, verbose=0)
    model.save(tmp_path / "gan.keras")
    loaded = kgen.load(tmp_path / "gan.keras")
    assert int(loaded.discriminator_optimizer.iterations) == 4
    for one in (model, loaded):
        one.fit(images(16), epochs=1, batch_size=8, verbose=0)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    rates = [float(o.learning_rate) for o in loaded.optimizers]
    np.testing.assert_allclose(rates, [1e-2, 2e-2])


# -- health and bad input ------------------------------------------------------------


def test_health_names_what_went_wrong():
    model = small()
    assert model.health({"discriminator_accuracy": 0.8, "diversity": 0.9}) == []
    (text,) = model.health({"discriminator_accuracy": 0.999})
    assert "discriminator wins" in text
    (text,) = model.health({"discriminator_accuracy": 0.3})
    assert "discriminator fails" in text
    (text,) = model.health({"diversity": 0.9, "val_diversity": 0.02})
    assert "mode collapse" in text
    (text,) = model.health({"generator_loss": 1e4})
    assert "divergence" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (50, 50, 3)}, "image_shape.*48, 64"),
        ({"image_shape": (256, 256, 3)}, "8 to 128"),
        ({"adversarial_loss": "lsgan"}, "least_squares"),
        ({"r1_weight": -1.0}, "0 or more"),
        ({"r1_weight": math.nan}, "0 or more"),
        ({"generator_normalization": "spectral"}, "group"),
        (
            {"r1_weight": 1.0, "discriminator_normalization": "batch"},
            "each image's own gradient",
        ),
        ({"augmentation": ("colour",)}, "color"),
        ({"discriminator_steps": 0}, "at least 1"),
        ({"num_classes": 1}, "at least 2"),
        (
            {"generator": keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])},
            "rows of shape",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GAN(**{"image_shape": SHAPE, "latent_dim": 3, "base_channels": 4} | arguments)


def test_one_optimizer_for_both_is_refused():
    optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="an optimizer of its own"):
        small().compile(optimizer, optimizer)


def test_labels_outside_of_the_classes_change_nothing():
    model = small(num_classes=3)
    model.compile()
    # All but the counters, and the singular vectors, which follow the weights alone.
    weights = [
        weight
        for weight in model.weights
        if weight.dtype == "float32" and not weight.path.endswith("/left")
    ]
    before = [weight.numpy() for weight in weights]
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 0])
    with pytest.raises(ValueError, match="labels"):
        model.train_on_batch({"images": images(), "labels": labels})
    for old, weight in zip(before, weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy(), weight.path)
    with pytest.raises(ValueError, match="with images and labels"):
        model.train_on_batch({"images": images()})


def test_a_loss_that_turns_nan_is_named_and_leaves_the_last_good_checkpoint(tmp_path):
    """A critic without norm and penalty, whose weights grow and grow."""

    def make():
        model = small(
            adversarial_loss="wasserstein", discriminator_normalization="none"
        )
        model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(10.0))
        return model

    rows = tf.constant(images())
    pipeline = kgen.data.Pipeline(
        50 * 8,
        lambda numbers, *_: {"images": tf.gather(rows, numbers % 8)},
        batch_size=8,
    )
    checkpointer = training.Checkpointer(tmp_path / "state.npz", every_seconds=0)
    with pytest.raises(FloatingPointError, match="_loss` became NaN or infinite"):
        training.fit(
            make(),
            pipeline,
            epochs=1,
            callbacks=[training.StopOnNonFinite(), checkpointer],
        )
    saved = make()
    assert checkpointer.restore(saved)
    assert 0 < int(saved.step.numpy()) < 50
    assert all(np.isfinite(weight).all() for weight in saved.get_weights())


def test_penalties_are_refused_where_gradients_are_clipped_by_example():
    model = GAN(image_shape=(8, 8, 1), latent_dim=2, base_channels=2, r1_weight=1.0)
    with pytest.raises(ValueError, match="without penalties.*PerExampleGradient"):
        model.compile(estimator=PerExampleGradient(1.0))
