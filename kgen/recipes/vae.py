"""`kgen fit vae`: variational autoencoders of images, and the IWAE."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from kgen.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    activation_name,
)
from kgen.recipes.images import ImageRecipe
from kgen.recipes.recipe import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAERecipe(ImageRecipe):
    """Variational autoencoder: images from latent vectors (default: 8x8 digits).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, seed 0, one run each; intervals
    are 95 %, over images. Machine A: two cores of a Xeon at 2.8 GHz, 2026-11-24. B: two
    cores of an AMD EPYC (AVX-512 with bfloat16), about three times as fast, 2026-11-25.

    `kgen fit vae`: 33 s on A, 16 s on B; grey levels, Gaussian with a learned variance;
    IS-100 of 179 validation images -32.57 nats (-34.51 to -30.74), independent pixels
    6.63; mean squared error of reconstructions 0.0085.

    The others are of MNIST, dynamic binarisation, and measured by `kgen evaluate` on
    all 10,000 test images, which A and B drew by different noise; independent pixels
    205.8 and 205.9 nats.

    `kgen fit vae --preset mnist`: 27 min on B beside other work, at cf8a20d. IS-5000
    80.80 nats (80.41 to 81.19), bound 83.54 (83.13 to 83.96), mean squared error
    0.0184; IS-100 on 1,000 validation images 80.58. 48 epochs instead of 120, 23 min on
    A: 81.18. Network and rate were chosen by IS-100 on 1,000 validation images, in runs
    of 4 epochs: learned prior 88.5, standard normal 94.7; learning rate 4e-3 86.6, 2e-3
    88.5.

    `kgen fit vae --preset mnist_mlp`: 784-200-200-50 and a standard normal prior as in
    Burda et al., 2016, with swish instead of tanh; about 35 min of one core of B.
    IS-5000 85.44 nats (85.01 to 85.87), bound 88.94 (88.45 to 89.41). Chosen by IS-100
    on 1,000 validation images (85.31 in the end), in runs of 120 epochs: swish 87.9,
    tanh 90.1; tanh in batches of 32 at a rate of 1e-3 89.9.

    `kgen fit vae --preset mnist_mlp --name iwae --start-from vae-mnist-mlp --epochs 130
    --learning-rate 6e-4 --kl-warmup-epochs 0 --num-importance-samples 50
    --num-gradient-samples 4`: the IWAE, k = 50, from the weights of the run above; 35
    min on B beside other work. IS-5000 84.19 nats (83.75 to 84.63), one-sample bound
    92.84; IS-100 on 1,000 validation images 84.42.
    """

    recipe_name: ClassVar[str] = "vae"
    model_name: ClassVar[str] = "VAE"
    evaluations = ("evaluate_autoencoder", "evaluate_generator")

    # Without it, the first steps of larger RGB images throw the posterior off for good.
    warmup_steps: NonNegativeInt = option(
        200, "Steps over which the learning rate rises from 0."
    )
    binarize: Literal["auto", "none", "dynamic", "static"] = option(
        "auto",
        "Draw black or white pixels: anew each time (dynamic) or once (static); auto: "
        "dynamic for the bernoulli likelihood.",
    )
    likelihood: Literal["bernoulli", "gaussian", "discretized_logistic"] = option(
        "gaussian", "Of a pixel: black or white, a real number, or one of 256 levels."
    )
    variance: PositiveFloat | None = option(
        None, "Of a pixel (range 0 to 1), for the last two; default: learned."
    )
    network: Literal["auto", "mlp", "conv"] = option(
        "auto", "Kind of encoder and decoder; auto: conv from 16 pixels on."
    )
    latent_dim: PositiveInt = option(20, "Length of a latent vector.")
    hidden_units: tuple[PositiveInt, ...] = option((400,), "Hidden layers of the mlp.")
    base_channels: PositiveInt = option(
        64, "Channels of the conv network's first level."
    )
    num_blocks: NonNegativeInt = option(
        1, "Residual blocks on each level of the conv network."
    )
    activation: Annotated[str, activation_name("swish")] = option(
        "swish", "Keras activation of the hidden layers."
    )
    prior: Literal["normal", "flow"] = option(
        "flow", "Of the latent vectors: standard normal, or learned by a flow."
    )
    kl_weight: NonNegativeFloat = option(1.0, "Factor of the KL term (beta).")
    kl_warmup_epochs: NonNegativeFloat = option(
        0.0, "Epochs over which it rises from 0."
    )
    free_bits: NonNegativeFloat = option(
        0.0, "Nats of KL that cost nothing, a dimension."
    )
    num_importance_samples: PositiveInt = option(1, "1: VAE; more: IWAE.")
    num_gradient_samples: PositiveInt | None = option(
        None, "How many of those get a gradient, drawn by their weights; default: all."
    )

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns shape and classes of the images, and the length of the warm-up."""
        options = super().model_options(data, steps_per_epoch)
        steps = round(self.kl_warmup_epochs * steps_per_epoch)
        return options | {"kl_warmup_steps": steps}

    def _binarize(self) -> str | None:
        if self.binarize != "auto":
            return None if self.binarize == "none" else self.binarize
        return "dynamic" if self.likelihood == "bernoulli" else None


PRESETS = {
    "digits": VAERecipe(name="vae-digits"),
    "mnist": VAERecipe(
        name="vae-mnist",
        data="mnist",
        likelihood="bernoulli",
        epochs=120,
        batch_size=128,
        learning_rate=4e-3,
        latent_dim=40,
        kl_warmup_epochs=1.0,
        steps_per_execution=16,
    ),
    # 784-200-200-50, the network of Burda et al., 2016; with swish instead of tanh.
    "mnist_mlp": VAERecipe(
        name="vae-mnist-mlp",
        data="mnist",
        likelihood="bernoulli",
        epochs=1000,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=0,
        kl_warmup_epochs=10.0,
        network="mlp",
        hidden_units=(200, 200),
        latent_dim=50,
        prior="normal",
        steps_per_execution=100,
        sample_epochs=10,
        jit_compile=True,
    ),
}
