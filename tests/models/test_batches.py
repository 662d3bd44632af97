"""The door of `fit`, `evaluate` and `predict`: every kind of data, checked once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kgen.models import GAN, GPT, VAE, MultVAE
from kgen.models.shared import batches
from kgen.models.shared.batches import checked_data

RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 4, 4, 1), np.float32)
LABELS = np.arange(12) % 3


class Batches(keras.utils.PyDataset):
    """Batches of four rows."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = arrays

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return {name: array[rows] for name, array in self.arrays.items()}


def generator_of(arrays):
    return ((Batches(arrays)[index],) for index in range(3))


def dataset_of(arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(4)


KINDS = {
    "arrays": lambda arrays: arrays,
    "tensors": lambda arrays: {k: tf.constant(v) for k, v in arrays.items()},
    "dataset": dataset_of,
    "PyDataset": Batches,
    "generator": generator_of,
}


def make_vae(num_classes=None, **options):
    keras.utils.set_random_seed(0)
    vae = VAE(
        image_shape=(4, 4, 1), latent_dim=2, hidden_units=(3,), num_classes=num_classes
    )
    vae.compile(keras.optimizers.SGD(0.1), **options)
    return vae


@pytest.fixture(scope="module")
def vae():
    return make_vae()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_of_any_kind_of_data_is_refused(vae, kind):
    images = IMAGES.copy()
    images[9] = 7.0
    for method in (vae.fit, vae.evaluate, vae.predict):
        with pytest.raises(ValueError, match=r"`images` must be uint8.* to 7"):
            method(KINDS[kind]({"images": images}), verbose=0)


@pytest.mark.parametrize("kind", ["arrays", "dataset", "PyDataset"])
def test_a_bad_row_is_refused_under_xla(kind):
    images = IMAGES.copy()
    images[9] = np.nan
    model = make_vae(jit_compile=True)
    with pytest.raises(ValueError, match="`images` must be uint8.* nan"):
        model.fit(KINDS[kind]({"images": images}), verbose=0)
    finite = [np.isfinite(weight).all() for weight in model.get_weights()]
    assert all(finite)


def test_arrays_are_checked_whole_before_the_first_step(vae):
    images = np.concatenate([IMAGES, IMAGES * 3])
    before = int(vae.step.numpy())
    with pytest.raises(ValueError, match="`images`"):
        vae.fit({"images": images}, batch_size=4, verbose=0)
    assert int(vae.step.numpy()) == before


def test_every_kind_of_good_data_trains(vae):
    for kind in KINDS.values():
        before = int(vae.step.numpy())
        data = kind({"images": IMAGES})
        batch_size = 4 if isinstance(data, dict) else None
        vae.fit(data, batch_size=batch_size, steps_per_epoch=3, verbose=0)
        assert int(vae.step.numpy()) == before + 3


def test_wrong_validation_data_is_refused(vae):
    with pytest.raises(ValueError, match="`images`"):
        vae.fit(IMAGES, validation_data=dataset_of({"images": -IMAGES}), verbose=0)


def test_data_are_checked_once_for_all_epochs(vae, monkeypatch):
    checks = []

    def counted(*args, **options):
        checks.append(args)
        return checked_data(*args, **options)

    monkeypatch.setattr(batches, "checked_data", counted)
    data = dataset_of({"images": IMAGES})
    vae.fit(data, validation_data=data, epochs=3, verbose=0)
    assert len(checks) == 2


def test_single_batches_are_checked(vae):
    for method in (vae.train_on_batch, vae.test_on_batch, vae.predict_on_batch):
        with pytest.raises(ValueError, match="`images`"):
            method(IMAGES + 1)
        method(IMAGES)


def test_a_distributed_dataset_that_is_not_checked_is_refused(vae):
    strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    dataset = strategy.experimental_distribute_dataset(dataset_of({"images": IMAGES}))
    with pytest.raises(ValueError, match="checked before it is distributed"):
        vae.fit(dataset, verbose=0)


@pytest.mark.parametrize("names", [("images", "lables"), ("pictures",)])
def test_unknown_names_are_refused(vae, names):
    with pytest.raises(ValueError, match=f"Received: .*{names[-1]}"):
        vae.fit(dict.fromkeys(names, IMAGES), verbose=0)


class Order(keras.callbacks.Callback):
    """Keeps the running mean of the KL after each batch of one row."""

    def __init__(self):
        super().__init__()
        self.means = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(float(logs["kl"]))


@pytest.mark.parametrize(
    ("data", "is_shuffled"),
    [
        (IMAGES, True),
        (tf.constant(IMAGES), True),
        ({"images": IMAGES}, True),
        (tf.data.Dataset.from_tensor_slices({"images": IMAGES}).batch(1), False),
    ],
)
def test_arrays_are_shuffled_and_datasets_keep_their_order(vae, data, is_shuffled):
    """Keras draws one order for each fit where a global seed is set."""
    vae.optimizer.learning_rate = 0.0
    batch_size = None if isinstance(data, tf.data.Dataset) else 1
    orders = [Order(), Order()]
    vae.fit(IMAGES, batch_size=1, shuffle=False, verbose=0, callbacks=[orders[0]])
    vae.fit(data, batch_size=batch_size, verbose=0, callbacks=[orders[1]])
    in_order, received = (order.means for order in orders)
    assert len(received) == 12
    assert received[-1] == pytest.approx(in_order[-1], rel=1e-5)
    assert (received != in_order) == is_shuffled


# -- weights of rows ------------------------------------------------------------


def one_step(data, **options):
    """Weights of a VAE after one step of SGD on all rows."""
    model = make_vae(num_classes=3)
    model.fit(data, batch_size=12, verbose=0, shuffle=False, **options)
    return np.concatenate(
        [w.ravel() for w in model.get_weights() if w.dtype != "int64"]
    )


def test_sample_weights_are_those_of_the_mean():
    """Weights of 0 and 1 are a step on the rows of weight 1 alone."""
    kept = np.arange(12) < 5
    data = {"images": IMAGES, "labels": LABELS}
    expected = one_step({name: array[kept] for name, array in data.items()})
    weights = kept.astype(np.float32)
    for received in (
        one_step(data, sample_weight=weights),
        one_step(data | {"sample_weight": 3 * weights}),
        one_step(data | {"sample_weight": kept.astype(int)}),
        one_step((IMAGES, LABELS, weights)[0], y=LABELS, sample_weight=weights),
        one_step(tf.data.Dataset.from_tensors((IMAGES, LABELS, weights))),
        one_step(tf.data.Dataset.from_tensors((IMAGES, LABELS, np.float64(weights)))),
        one_step(tf.data.Dataset.from_tensors((IMAGES, LABELS, kept.astype(int)))),
    ):
        np.testing.assert_allclose(received, expected, atol=1e-6)
    assert np.abs(one_step(data) - expected).max() > 1e-4


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_class_weights_are_those_of_the_rows(kind):
    data = {"images": IMAGES, "labels": LABELS}
    weights = np.array([1.0, 1.0, 0.25], np.float32)[LABELS]
    expected = one_step(data, sample_weight=weights)
    given = data if kind == "arrays" else tf.data.Dataset.from_tensors(data)
    received = one_step(given, class_weight={2: 0.25})
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_evaluate_weighs_rows():
    model = make_vae()
    weights = (np.arange(12) < 5).astype(np.float32)
    expected = model.evaluate(IMAGES[:5], verbose=0, return_dict=True)
    received = model.evaluate(
        IMAGES, sample_weight=weights, batch_size=12, verbose=0, return_dict=True
    )
    assert received["kl"] == pytest.approx(expected["kl"], rel=1e-5)


def test_weights_are_refused_where_no_loss_is_by_row():
    gan = GAN(image_shape=(8, 8, 1), latent_dim=2, base_channels=4)
    gan.compile()
    images = np.zeros((4, 8, 8, 1), np.uint8)
    for weights in ({"sample_weight": np.ones(4)}, {"class_weight": {0: 2.0}}):
        with pytest.raises(
            ValueError, match="Sample weights need a loss|`class_weight` needs"
        ):
            gan.fit(images, y=np.zeros(4, int), **weights, verbose=0)


def test_weights_of_texts_and_users_move_the_loss():
    tokens = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    gpt = GPT(vocab_size=4, context=4, num_layers=1, num_heads=1, hidden_dim=4)
    users = tf.ragged.constant([[0, 1], [2]])
    recommender = MultVAE(item_ids=range(4), latent_dim=2, hidden_units=(3,))
    for model, data in ((gpt, tokens), (recommender, users)):
        model.compile()
        losses = [
            model.evaluate(data, sample_weight=np.array(w), verbose=0, return_dict=True)
            for w in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
        ]
        first, second, _ = (logs["loss"] for logs in losses)
        assert first != pytest.approx(second, rel=1e-3)


# -- frozen layers -----------------------------------------------------------------


def test_frozen_layers_stay_frozen_after_loading(tmp_path):
    vae = make_vae()
    vae.encoder.trainable = False
    vae.compile(keras.optimizers.Adam(0.1))
    vae.fit(IMAGES, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    before = loaded.encoder.get_weights()
    count = len(vae.trainable_variables)
    assert len(loaded.trainable_variables) == count
    for ours, theirs in zip(
        vae.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    loaded.fit(IMAGES, verbose=0)
    for old, new in zip(before, loaded.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_gan_with_a_frozen_network_leaves_it_alone():
    gan = GAN(image_shape=(8, 8, 1), latent_dim=2, base_channels=4, ema_half_life=0)
    gan.discriminator.trainable = False
    gan.compile()
    images = RNG.random((8, 8, 8, 1), np.float32)
    frozen = [v.numpy() for v in gan.discriminator.trainable_weights]
    before = [v.numpy() for v in gan.generator.trainable_variables]
    gan.fit(images, batch_size=4, verbose=0)
    for old, new in zip(frozen, gan.discriminator.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)
    pairs = zip(before, gan.generator.trainable_variables, strict=True)
    assert max(np.abs(old - new).max() for old, new in pairs) > 1e-5


def test_arguments_that_a_model_does_not_take_are_refused():
    gan = GAN(image_shape=(8, 8, 1), latent_dim=2, base_channels=4)
    for options in ({"loss": "mse"}, {"metrics": ["mae"]}, {"weighted_metrics": []}):
        with pytest.raises(
            TypeError, match=f"own. Received an unexpected.*{next(iter(options))}"
        ):
            gan.compile(**options)
    with pytest.raises(ValueError, match="`use_ema` takes effect with a single"):
        gan.compile(discriminator_optimizer=keras.optimizers.Adam(use_ema=True))
    with pytest.raises(ValueError, match=r"must end in .keras"):
        gan.save("gan.h5")
