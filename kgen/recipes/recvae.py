"""`kgen fit recvae`: recommendation by RecVAE."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kgen.recipes.base import option
from kgen.recipes.recommenders import RecommenderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecVAERecipe(RecommenderRecipe):
    """RecVAE: recommends items to people by what they like (default: MovieLens 100K).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, on two cores of an AMD EPYC beside
    other work, 2026-11-25. Test users, full ranking, mean over seeds 0 to 2, which draw
    the split as well.

    Options of `--preset ml_100k`: 55 s. NDCG@100 0.457 (0.462, 0.460, 0.448), recall@20
    0.396, recall@50 0.579; EASE, l2 300, on the same splits 0.455 (0.459, 0.472,
    0.435), 0.394, 0.563: less EASE +0.004, -0.012 and +0.014, a tie. On validation
    users 0.444, and EASE 0.449. Chosen by these: a rate that stays 0.443, one encoder
    epoch a cycle 0.442, a gamma of 0.0035 0.440, two layers of 200 0.440, a latent
    vector of 50 0.431 and of 400 0.445 (not tested).
    """

    recipe_name: ClassVar[str] = "recvae"

    epochs: int = option(120, "Passes over the training people, of both networks.")
    batch_size: int = option(100, "People in a batch, over all devices together.")
    learning_rate: float = option(5e-4, "Highest learning rate of both Adams, above 0.")
    hidden_dim: int = option(600, "Width of each hidden layer of the encoder.")
    num_layers: int = option(5, "How many hidden layers it has, 1 or more.")
    latent_dim: int = option(200, "Length of a latent vector, 1 or more.")
    input_dropout: float = option(0.5, "Share of items the encoder does not see.")
    kl_weight_per_item: float = option(
        0.005, "Factor of a person's KL for each of his or her items (gamma)."
    )
    kl_weight: float | None = option(None, "The same factor for everybody instead.")
    encoder_epochs: int = option(3, "Passes that train the encoder, in a cycle.")
    decoder_epochs: int = option(1, "Passes after them that train the decoder.")

    def make_model(self, data: Any, steps_per_epoch: int) -> Any:
        """Makes a compiled `kgen.models.RecVAE` for these ratings."""
        from kgen.models import RecVAE
        from kgen.nn import optimizers

        model = RecVAE(
            **self._items(data),
            hidden_dim=self.hidden_dim,
            num_layers=self.num_layers,
            latent_dim=self.latent_dim,
            input_dropout=self.input_dropout,
            kl_weight_per_item=self.kl_weight_per_item,
            kl_weight=self.kl_weight,
            encoder_steps=self.encoder_epochs * steps_per_epoch,
            decoder_steps=self.decoder_epochs * steps_per_epoch,
            dtype=self._dtype(),
        )
        model.compile(
            *(
                optimizers.Adam(self._schedule(self.learning_rate, steps_per_epoch))
                for _ in range(2)
            ),
            **self._compile_options(steps_per_epoch),
        )
        return model


PRESETS = {
    "ml_100k": RecVAERecipe(name="recvae-ml-100k", held_out_users=100),
    "ml_1m": RecVAERecipe(
        name="recvae-ml-1m", data="movielens/1m-ratings", min_rating=0.0
    ),
}
