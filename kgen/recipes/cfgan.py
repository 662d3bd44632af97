"""`kgen fit cfgan`: recommendation by CFGAN."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kgen.recipes.base import option
from kgen.recipes.recommenders import RecommenderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class CFGANRecipe(RecommenderRecipe):
    """CFGAN: recommends items to people by what they like (default: MovieLens 100K).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, two cores of an AMD EPYC beside
    other work, 2026-11-25; precision at 5 and 20, NDCG at 5 and 20, of test pairs.
    MovieLens 100K by the protocol of its authors (the preset's data), training and
    validation pairs trained on, epochs chosen by validation: item-based, of seeds 0 to
    2, 0.432, 0.291, 0.466, 0.433; EASE 0.444, 0.298, 0.479, 0.445; popularity 0.217,
    0.154, 0.230, 0.215; the paper 0.444 and 0.294. That is `kgen.models.CFGAN` on
    transposed rows, in batches of 64 at a rate of 2e-4 for 70 to 100 epochs: 2 to 6
    min. User-based, which is this command, but with those pairs, 160 epochs at 1e-4,
    seed 0 alone: 0.413, 0.281, 0.446, 0.415; 10 min.
    """

    recipe_name: ClassVar[str] = "cfgan"

    epochs: int = option(160, "Passes over the training people, 1 or more.")
    batch_size: int = option(64, "People in a batch, over all devices together.")
    learning_rate: float = option(1e-4, "Learning rate of the generator's Adam.")
    discriminator_learning_rate: float | None = option(
        None, "Likewise of the discriminator's; default: the generator's."
    )
    generator_units: tuple[int, ...] = option((400,), "Its hidden layers.")
    discriminator_units: tuple[int, ...] = option((125,), "Its hidden layers.")
    zero_reconstruction: float = option(
        0.7, "Share of missing items whose scores are pulled to 0."
    )
    zero_reconstruction_weight: float = option(0.03, "Factor of their squares.")
    partial_masking: float = option(
        0.7, "Share of missing items that the discriminator is shown."
    )
    generator_steps: int = option(4, "Updates of the generator by a batch.")
    discriminator_steps: int = option(2, "Updates of the discriminator before them.")
    generator_weight_decay: float = option(
        5e-4, "Factor of the generator's summed squared weights."
    )
    discriminator_weight_decay: float = option(0.0, "Likewise the discriminator's.")

    def __post_init__(self) -> None:
        """Checks what can be checked without the data."""
        super().__post_init__()
        self._check_above_0("discriminator_learning_rate")

    def make_model(self, data: Any, steps_per_epoch: int) -> Any:
        """Makes a compiled `kgen.models.CFGAN` for these ratings."""
        from kgen.models import CFGAN
        from kgen.nn import optimizers

        model = CFGAN(
            **self._items(data),
            generator_units=self.generator_units,
            discriminator_units=self.discriminator_units,
            zero_reconstruction=self.zero_reconstruction,
            zero_reconstruction_weight=self.zero_reconstruction_weight,
            partial_masking=self.partial_masking,
            generator_steps=self.generator_steps,
            discriminator_steps=self.discriminator_steps,
            generator_weight_decay=self.generator_weight_decay,
            discriminator_weight_decay=self.discriminator_weight_decay,
            dtype=self._dtype(),
        )
        rates = (
            self.learning_rate,
            self.discriminator_learning_rate or self.learning_rate,
        )
        model.compile(
            *(optimizers.Adam(rate) for rate in rates),
            **self._compile_options(steps_per_epoch),
        )
        return model


PRESETS = {
    # The protocol of its authors: a fifth of all pairs, whatever their rating.
    "ml_100k": CFGANRecipe(
        name="cfgan-ml-100k", min_rating=0.0, min_items=1, split="random"
    ),
    "ml_1m": CFGANRecipe(
        name="cfgan-ml-1m",
        data="movielens/1m-ratings",
        min_rating=0.0,
        epochs=55,
        batch_size=256,
        learning_rate=5e-4,
        generator_weight_decay=1e-4,
    ),
}
