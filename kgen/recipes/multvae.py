"""`kgen fit multvae`: recommendation by Mult-VAE and Mult-DAE."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

from kgen.arguments import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Share,
    activation_name,
)
from kgen.recipes.recipe import batch_size_option, option
from kgen.recipes.recommenders import RecommenderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultVAERecipe(RecommenderRecipe):
    """Mult-VAE: recommends items by the items a user likes (default: MovieLens 100K).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, on two cores of an AMD EPYC beside
    other work, 2026-11-25. Test users, full ranking; the options of baselines are
    chosen by validation users. Of several seeds, which draw the split as well: mean
    (standard deviation). `benchmarks/recommender_seeds.py` measures all of it.

    `kgen fit multvae --preset ml_100k --data ml-100k.zip`: 11 s. 10 seeds: NDCG@100
    0.451 (0.019), recall@20 0.389 (0.023), recall@50 0.557 (0.024). EASE 0.463 (0.020),
    0.398 (0.018), 0.561 (0.019); item-kNN 0.423, 0.358, 0.526; popularity 0.274
    (0.014), 0.210 (0.018), 0.332 (0.024). Less EASE, paired: NDCG@100 -0.011 +- 0.013.
    Learning rate and epochs by validation NDCG of three seeds: 60 epochs with a rate
    that falls 0.432, 100 with one that stays 0.424.

    `kgen fit multvae --preset ml_1m --data DIR`, DIR with the pairs of MovieLens 1M: 2
    min. 3 seeds: NDCG@100 0.450 (0.001), recall@20 0.380 (0.003), recall@50 0.468
    (0.002). EASE 0.482 (0.002), 0.421 (0.010), 0.495 (0.007); item-kNN 0.404, 0.348,
    0.412; popularity 0.224, 0.188, 0.227. Less EASE, paired: NDCG@100 -0.032 +- 0.004.
    In batches of 500 for 100 epochs 0.431 (one seed).

    `kgen fit multvae --preset ml_100k_dae --data ml-100k.zip` (Mult-DAE): 10 s. 10
    seeds: NDCG@100 0.433 (0.021), recall@20 0.378 (0.024), recall@50 0.542 (0.019).
    Less EASE, paired: NDCG@100 -0.030 +- 0.011.

    `kgen fit multvae --preset ml_100k_content --data ml-100k.zip`: 5 s. A twentieth of
    the items, held out of training, are ranked by genres, words and year. 10 seeds:
    NDCG@100 0.458 (0.033), recall@20 0.594 (0.073), precision@5 0.151 (0.029);
    content-kNN 0.408 (0.039), 0.495 (0.068), 0.100 (0.040); popularity, chance
    here, 0.332 (0.050), 0.346 (0.153), 0.047 (0.032). Less content-kNN, paired:
    NDCG@100 +0.050 +- 0.040. The same with `--min-rating 0` on MovieLens 1M: 45 s. 3
    seeds: 0.431 (0.042), 0.401 (0.053), 0.230 (0.040); content-kNN 0.390, 0.353, 0.155;
    popularity 0.192, 0.114, 0.047. Chosen on validation items of six seeds: NDCG@100
    without the dropout of features 0.491, with it 0.503; without years 0.425. Where
    all items have users, features change little: `--preset ml_100k --item-features`,
    3 seeds, NDCG@100 0.442, EASE 0.453.

    `kgen fit multvae --split-strategy leave-one-out --data ml-100k.zip`: 8 s.
    3 seeds, on which this split does not depend: NDCG@100 0.146 (0.002), recall@20
    0.218 (0.003); EASE 0.158, 0.234; item-kNN 0.145, 0.214; popularity 0.090, 0.137.
    """

    recipe_name: ClassVar[str] = "multvae"
    model_name: ClassVar[str] = "MultVAE"

    epochs: PositiveInt = option(60, "Passes over the training users.")
    batch_size: PositiveInt | None = batch_size_option(100, "Users")
    learning_rate: PositiveFloat = option(1e-3, "Highest learning rate of Adam.")
    hidden_units: tuple[PositiveInt, ...] = option(
        (600,), "Hidden layers of the encoder; the decoder mirrors them."
    )
    latent_dim: PositiveInt = option(200, "Length of a latent vector.")
    item_features: bool = option(
        False, "Also learn from titles and genres, and so score items without users."
    )
    feature_dropout: Share = option(
        0.3, "Dropout rate of these features; with item_features."
    )
    variational: bool = option(True, "With noise and KL; without: Mult-DAE.")
    input_dropout: Share = option(0.5, "Dropout rate of the encoder's input items.")
    kl_weight: NonNegativeFloat = option(0.2, "Factor of the KL term (beta).")
    kl_warmup: Fraction = option(0.5, "Share of the run over which it rises from 0.")
    weight_decay: NonNegativeFloat = option(
        0.0, "Factor of the summed squares of the weights."
    )
    activation: Annotated[str, activation_name("tanh")] = option(
        "tanh", "Keras activation of the hidden layers."
    )

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the items, their counts and features, and the warm-up's length."""
        num_steps = self.epochs * steps_per_epoch
        return super().model_options(data, steps_per_epoch) | {
            "item_features": _item_features(data) if self.item_features else None,
            "kl_warmup_steps": round(self.kl_warmup * num_steps),
        }


def _item_features(data):
    """Returns the names of each item's features."""
    features, names = data.item_features()
    return [
        [names[column] for column in features[[row]].indices]
        for row in range(data.num_items)
    ]


_ML_100K = MultVAERecipe(name="multvae-ml-100k", held_out_users=100)
PRESETS = {
    "ml_100k": _ML_100K,
    "ml_100k_dae": dataclasses.replace(
        _ML_100K, name="multvae-ml-100k-dae", variational=False, hidden_units=()
    ),
    "ml_100k_content": MultVAERecipe(
        name="multvae-ml-100k-content",
        split_strategy="held-out-items",
        item_features=True,
        weight_decay=0.01,
        epochs=12,
    ),
    "ml_1m": MultVAERecipe(
        name="multvae-ml-1m", data="movielens/1m-ratings", min_rating=0.0
    ),
}
