"""`kgen fit recvae`: recommendation by RecVAE."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kgen.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, Share
from kgen.recipes.recipe import batch_size_option, option
from kgen.recipes.recommenders import RecommenderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecVAERecipe(RecommenderRecipe):
    """RecVAE: recommends items by the items a user likes (default: MovieLens 100K).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, on two cores of an AMD EPYC,
    2026-11-25. Test users, full ranking; the options of baselines are chosen by
    validation users. Of several seeds, which draw the split as well: mean (standard
    deviation). `benchmarks/recommender_seeds.py` measures all of it.

    `kgen fit recvae --preset ml_100k --data ml-100k.zip`: 14 s. 10 seeds: NDCG@100
    0.459 (0.012), recall@20 0.396 (0.018), recall@50 0.577 (0.019). EASE 0.463 (0.020),
    0.398 (0.018), 0.561 (0.019); item-kNN 0.423, 0.358, 0.526; popularity 0.274, 0.210,
    0.332. Less EASE, paired: NDCG@100 -0.004 +- 0.009, recall@50 +0.016 +- 0.011. By
    validation NDCG of three seeds (this 0.444, EASE 0.449): a rate that stays 0.443,
    one encoder epoch a cycle 0.442, a gamma of 0.0035 0.440, two layers of 200 0.440, a
    latent vector of 50 0.431 and of 400 0.445 (not tested).

    `kgen fit recvae --preset ml_1m --data DIR`, DIR with the pairs of MovieLens 1M: 2
    min. 3 seeds: NDCG@100 0.469 (0.004), recall@20 0.411 (0.002), recall@50 0.490
    (0.006). EASE 0.482 (0.002), 0.421 (0.010), 0.495 (0.007); item-kNN 0.404, 0.348,
    0.412; popularity 0.224, 0.188, 0.227. Less EASE, paired: NDCG@100 -0.014 +- 0.005.
    """

    recipe_name: ClassVar[str] = "recvae"
    model_name: ClassVar[str] = "RecVAE"

    epochs: PositiveInt = option(
        120, "Passes over the training users, of both networks."
    )
    batch_size: PositiveInt | None = batch_size_option(100, "Users")
    learning_rate: PositiveFloat = option(5e-4, "Highest learning rate of both Adams.")
    hidden_dim: PositiveInt = option(600, "Width of each hidden layer of the encoder.")
    num_layers: PositiveInt = option(5, "Number of its hidden layers.")
    latent_dim: PositiveInt = option(200, "Length of a latent vector.")
    prior_weights: tuple[float, ...] = option(
        (0.15, 0.75, 0.1),
        "Weights of the prior's parts: standard normal, old posterior, wide normal.",
    )
    input_dropout: Share = option(0.5, "Dropout rate of the encoder's input items.")
    kl_weight_per_item: NonNegativeFloat = option(
        0.005, "Factor of a user's KL term for each of the user's items (gamma)."
    )
    kl_weight: NonNegativeFloat | None = option(
        None, "The same factor for all users instead."
    )
    encoder_epochs: PositiveInt = option(
        3, "Passes that train the encoder, in a cycle."
    )
    decoder_epochs: PositiveInt = option(1, "Passes after them that train the decoder.")

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the items, their counts, and the lengths of a cycle's two parts."""
        return super().model_options(data, steps_per_epoch) | {
            "encoder_steps": self.encoder_epochs * steps_per_epoch,
            "decoder_steps": self.decoder_epochs * steps_per_epoch,
        }

    def optimizers(self, steps_per_epoch: int) -> list[Any]:
        """Returns an Adam for each network."""
        return [self.adam(steps_per_epoch) for _ in range(2)]


PRESETS = {
    "ml_100k": RecVAERecipe(name="recvae-ml-100k", held_out_users=100),
    "ml_1m": RecVAERecipe(
        name="recvae-ml-1m", data="movielens/1m-ratings", min_rating=0.0
    ),
}
