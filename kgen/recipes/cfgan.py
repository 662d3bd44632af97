"""`kgen fit cfgan`: recommendation by CFGAN."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

from kgen.arguments import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    activation_name,
)
from kgen.recipes.recipe import batch_size_option, option
from kgen.recipes.recommenders import RecommenderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class CFGANRecipe(RecommenderRecipe):
    """CFGAN: recommends items by the items a user likes (default: MovieLens 100K).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, on two cores of an AMD EPYC beside
    other work, 2026-11-25. Test users, full ranking, mean (standard deviation) over
    seeds, which draw the split as well.

    `python benchmarks/cfgan_replication.py ml-100k.zip --seeds 3 --mode item`: the
    protocol of its authors, whose pairs `--preset ml_100k` has, too; training and
    validation pairs trained on, epochs (110, 75, 75) chosen by validation; item-based,
    batches of 64, a rate of 2e-4: 1 to 3 min a seed. Precision at 5 and 20, NDCG at 5
    and 20: 0.432 (0.001), 0.290 (0.002), 0.464 (0.003), 0.430 (0.004). EASE, l2 300,
    0.444 (0.005), 0.298 (0.003), 0.479 (0.005), 0.445 (0.004); popularity 0.217, 0.154,
    0.230, 0.215; the paper 0.444 and 0.294. User-based, `--seeds 2 --mode user`, a rate
    of 1e-4, 135 epochs chosen: 0.414 (0.009), 0.280 (0.004), 0.448 (0.009), 0.414
    (0.009); EASE on these two 0.442, 0.296, 0.476, 0.442; 4 min a seed.

    `benchmarks/recommender_seeds.py --seeds 3 cfgan --data ml-100k.zip --held-out-users
    100`: 75 to 90 s a seed. NDCG@100 0.425 (0.007), recall@20 0.363 (0.012), recall@50
    0.513 (0.015). EASE 0.453 (0.021), 0.392 (0.014), 0.557 (0.014); item-kNN 0.409,
    0.352, 0.519; popularity 0.268, 0.204, 0.336. Less EASE, paired: NDCG@100 -0.028 +-
    0.052. The options are those of its authors' split.

    `benchmarks/recommender_seeds.py --seeds 3 cfgan --preset ml_1m --data DIR`, DIR
    with the pairs of MovieLens 1M: 4 to 5 min a seed. NDCG@100 0.448 (0.003), recall@20
    0.383 (0.003), recall@50 0.453 (0.006). EASE 0.482 (0.002), 0.421 (0.010), 0.495
    (0.007); item-kNN 0.404, 0.348, 0.412; popularity 0.224, 0.188, 0.227. Less EASE,
    paired: NDCG@100 -0.035 +- 0.012. Options by validation NDCG of seed 0, the best
    epoch of each: these 0.450, and falling after 60 epochs; a weight decay of 5e-4
    0.435 (of 60 epochs, still rising); one update of each network by a batch 0.430 (of
    130 epochs).
    """

    recipe_name: ClassVar[str] = "cfgan"
    model_name: ClassVar[str] = "CFGAN"

    epochs: PositiveInt = option(160, "Passes over the training users.")
    batch_size: PositiveInt | None = batch_size_option(64, "Users")
    learning_rate: PositiveFloat = option(
        1e-4, "Learning rate of the generator's Adam."
    )
    discriminator_learning_rate: PositiveFloat | None = option(
        None, "Likewise of the discriminator's; default: the generator's."
    )
    generator_units: tuple[PositiveInt, ...] = option((400,), "Its hidden layers.")
    discriminator_units: tuple[PositiveInt, ...] = option((125,), "Its hidden layers.")
    zero_reconstruction: Fraction = option(
        0.7, "Share of missing items whose scores are pulled to 0."
    )
    zero_reconstruction_weight: NonNegativeFloat = option(
        0.03, "Factor of their squares."
    )
    partial_masking: Fraction = option(
        0.7, "Share of missing items in the discriminator's input."
    )
    generator_steps: PositiveInt = option(4, "Updates of the generator by a batch.")
    discriminator_steps: PositiveInt = option(
        2, "Updates of the discriminator before them."
    )
    generator_weight_decay: NonNegativeFloat = option(
        5e-4, "Factor of the generator's summed squared weights."
    )
    discriminator_weight_decay: NonNegativeFloat = option(
        0.0, "Likewise the discriminator's."
    )
    activation: Annotated[str, activation_name("sigmoid")] = option(
        "sigmoid", "Keras activation of the hidden layers."
    )
    output_activation: Annotated[str, activation_name("sigmoid")] = option(
        "linear", "Keras activation of the generator's scores."
    )

    def optimizers(self, steps_per_epoch: int) -> list[Any]:
        """Returns an Adam for each network, whose rates stay as they are."""
        from kgen.nn.gradients import Adam

        rates = (self.learning_rate, self.discriminator_learning_rate)
        return [Adam(rate or self.learning_rate) for rate in rates]


PRESETS = {
    # The protocol of its authors: a fifth of all pairs, whatever their rating.
    "ml_100k": CFGANRecipe(
        name="cfgan-ml-100k", min_rating=0.0, min_items=1, split_strategy="random"
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
