"""Saving and loading of models: round trips, and errors of bad files."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import kgen
from kgen.models import VAE, load
from kgen.nn import MeanGradient

# Keras converts its variables to NumPy as it saves, by a signature that NumPy 2 calls
# deprecated: https://github.com/keras-team/keras/pull/21288
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def numbers(variables):
    return [np.asarray(variable.value) for variable in variables]


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def as_json(config):
    """A value after a round trip through JSON, where tuples become lists."""
    return json.loads(json.dumps(config))


@pytest.fixture(scope="module")
def trained(make_linear_vae, binary_images):
    """Own networks, an optimizer with state, and options away from their defaults."""
    rng = np.random.default_rng(0)
    vae = make_linear_vae(
        rng.normal(size=(4, 4)),
        rng.normal(size=4),
        rng.normal(size=(2, 4)),
        likelihood="gaussian",
        kl_weight=0.5,
        kl_warmup_steps=7,
        free_bits=0.25,
    )
    vae.compile(
        keras.optimizers.Adam(0.01),
        seed=5,
        estimator=MeanGradient(2.0),
        run_eagerly=True,
    )
    vae.fit(tf.data.Dataset.from_tensors(binary_images).repeat(3), verbose=0)
    return vae


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.keras"
    trained.save(path)
    return path


@pytest.fixture(scope="module")
def loaded(file):
    return load(file)


def test_a_loaded_model_has_the_weights_and_the_step(trained, loaded):
    assert isinstance(loaded, VAE)
    assert_equal(loaded.get_weights(), trained.get_weights())
    assert int(loaded.step.numpy()) == 3
    assert float(loaded.log_variance.value) != np.float32(np.log(0.01))  # It learned.


def test_a_loaded_model_has_the_arguments(trained, loaded):
    assert as_json(loaded.get_config()) == as_json(trained.get_config())
    assert loaded.get_compile_config() == trained.get_compile_config()
    assert (loaded.seed, loaded.estimator) == (5, MeanGradient(2.0))


def test_a_loaded_model_has_the_state_of_its_optimizer(trained, loaded):
    assert int(loaded.optimizer.iterations.value) == 3
    assert_equal(
        numbers(loaded.optimizer.variables), numbers(trained.optimizer.variables)
    )


def test_a_loaded_model_uses_what_was_loaded(trained, loaded, binary_images):
    np.testing.assert_array_equal(
        loaded.reconstruct(binary_images), trained.reconstruct(binary_images)
    )
    np.testing.assert_array_equal(loaded.generate([1, 2]), trained.generate([1, 2]))


def test_training_goes_on_as_if_never_saved(file, tmp_path, binary_images):
    """Takes one step, and a second one by the same model and by its loaded copy."""
    first = load(file)
    data = tf.data.Dataset.from_tensors(binary_images)
    first.fit(data, verbose=0)
    first.save(tmp_path / "model.keras")
    second = load(tmp_path / "model.keras")
    histories = [model.fit(data, verbose=0).history for model in (first, second)]
    assert histories[0] == histories[1]
    assert_equal(first.get_weights(), second.get_weights())
    assert int(second.step.numpy()) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"prior": "flow", "num_classes": 3, "hidden_units": (3, 2)},
        {"network": "conv", "base_channels": 2, "likelihood": "discretized_logistic"},
        {"num_importance_samples": 3, "variance": 0.1, "likelihood": "gaussian"},
    ],
)
def test_a_model_that_was_never_compiled_comes_back(tmp_path, options):
    vae = VAE(image_shape=(4, 4, 1), latent_dim=2, **options)
    vae.save(tmp_path / "vae.keras")
    loaded = load(tmp_path / "vae.keras")
    assert_equal(loaded.get_weights(), vae.get_weights())
    assert loaded.get_config() == vae.get_config()


def test_a_folder_is_loaded_by_the_model_in_it(file, trained):
    assert_equal(kgen.load(file.parent).get_weights(), trained.get_weights())
    assert_equal(kgen.load(str(file)).get_weights(), trained.get_weights())


# -- what cannot be loaded ----------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "missing.keras", tmp_path):
        with pytest.raises(
            FileNotFoundError, match="run's folder.*Received: "
        ) as error:
            load(path)
        assert str(path) in str(error.value)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("not a model")
    with pytest.raises(ValueError, match="text.keras"):
        load(path)


def test_a_model_with_code_inside_is_refused(tmp_path):
    """A Lambda layer would run whatever the file's author wrote."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(ValueError, match="(?i)lambda"):
        load(tmp_path / "code.keras")


def test_a_saved_file_holds_no_code(file):
    """A Lambda layer, which Keras pickles, would need safe_mode=False."""
    with zipfile.ZipFile(file) as archive:
        config = archive.read("config.json").decode()
        names = archive.namelist()
    assert "Lambda" not in config
    assert set(names) == {"metadata.json", "config.json", "model.weights.h5"}


# -- float32_clone ------------------------------------------------------------------


def test_a_float32_model_is_its_own_clone(trained):
    assert trained.float32_clone() is trained


def test_a_clone_of_a_mixed_model_computes_in_float32(make_linear_vae, binary_images):
    """By hand: latents W^T x, reconstructions 0.5 + V^T W^T x, in NumPy's float64."""
    rng = np.random.default_rng(1)
    encoder, decoder = rng.normal(size=(4, 4)), 0.05 * rng.normal(size=(2, 4))
    vae = make_linear_vae(
        encoder,
        None,
        decoder,
        likelihood="gaussian",
        variance=0.1,
        dtype="mixed_bfloat16",
    )
    vae.step.assign(12)
    clone = vae.float32_clone()
    assert clone is not vae
    images = binary_images.reshape(-1, 4)
    expected = images @ encoder[:, :2]
    # Bfloat16 has 8 bits: off by 1e-3 and more; float32 by rounding.
    assert np.abs(vae.encode(binary_images) - expected).max() > 1e-3
    np.testing.assert_allclose(clone.encode(binary_images), expected, atol=1e-5)
    np.testing.assert_allclose(
        clone.reconstruct(binary_images).reshape(-1, 4),
        np.clip(0.5 + expected @ decoder, 0, 1),
        atol=1e-5,
    )
    assert_equal(clone.get_weights(), vae.get_weights())
    assert int(clone.step.numpy()) == 12
    assert vae.dtype_policy.name == "mixed_bfloat16"  # The original is as it was.
    policies = {layer.dtype_policy.name for layer in clone._flatten_layers()}
    assert policies == {"float32"}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_model_comes_back_mixed(tmp_path, policy):
    vae = VAE(image_shape=(4, 4, 1), latent_dim=2, hidden_units=(3,), dtype=policy)
    vae.compile("adam")
    vae.save(tmp_path / "vae.keras")
    loaded = load(tmp_path / "vae.keras")
    assert loaded.dtype_policy.name == policy
    assert {layer.compute_dtype for layer in loaded.encoder.layers} == {
        policy.removeprefix("mixed_")
    }
    assert_equal(numbers(loaded.optimizer.variables), numbers(vae.optimizer.variables))


def test_a_compiled_network_inside_a_model_is_saved_without_its_optimizer(tmp_path):
    """Keras would warn of the optimizer's variables, and warnings are errors here."""
    layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    encoder = keras.Sequential(layers)
    encoder.compile("adam", "mse")
    vae = VAE(image_shape=(4, 4, 1), latent_dim=2, hidden_units=(3,), encoder=encoder)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    images = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    np.testing.assert_array_equal(loaded.encode(images), vae.encode(images))
