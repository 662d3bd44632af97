"""Replication of CFGAN by its authors' protocol, beside EASE, popularity and the paper.

MovieLens 100K, every rating positive, split at random into 72 % training, 8 %
validation and 20 % test pairs. Precision and NDCG at 5 and 20 over users with held-out
pairs, ranking all items but those in the user's history.

Each seed changes the split, the initial weights and the noise. CFGAN trains on the 72 %
and is evaluated on the validation pairs every 5 epochs, with early stopping after 20
epochs without improvement of NDCG@20. With the best number of epochs a new model trains
on training and validation pairs, 80 %, and is evaluated once on the test pairs. EASE
and popularity are fitted to the same 80 %. Batch size and learning rates are constants.

Item-based (--mode item), a row is an item and its columns are users; user-based, a row
is a user and its columns are items.

    python benchmarks/cfgan_replication.py ml-100k.zip --seeds 3 --mode item
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from kgen import training
from kgen.data import Pipeline, open_ratings
from kgen.evaluation import ranking
from kgen.evaluation.recommender_baselines import EASE, Popularity
from kgen.models import CFGAN
from kgen.nn import Adam

METRICS = ("P@5", "P@20", "NDCG@5", "NDCG@20")
PAPER = "Chae et al., 2018: P@5 .444, P@20 .294"
RATES = {"item": 2e-4, "user": 1e-4}
BATCH_SIZE = 64
MAX_EPOCHS, MEASURED_EVERY, PATIENCE = 300, 5, 20


def train(known, mode, epochs, seed, callbacks=()):
    """Returns a CFGAN trained on a multi-hot matrix [users, items]."""
    rows = known if mode == "user" else known.T.tocsr()
    rows = rows[np.diff(rows.indptr) > 0]  # without empty rows
    ragged = tf.RaggedTensor.from_row_splits(rows.indices, rows.indptr)
    pipeline = Pipeline(
        rows.shape[0],
        lambda indices, *_: {"items": tf.gather(ragged, indices)},
        batch_size=BATCH_SIZE,
        seed=seed,
        shuffle=True,
    )
    keras.utils.set_random_seed(seed)
    model = CFGAN(item_ids=range(rows.shape[1]))
    optimizers = Adam(RATES[mode]), Adam(RATES[mode])
    steps = pipeline.steps_per_epoch
    model.compile(*optimizers, seed=seed, steps_per_execution=steps)
    callbacks = [training.StopOnNonFinite(), *callbacks]
    training.fit(model, pipeline, epochs=epochs, callbacks=callbacks)
    return model


def score(model, known, mode):
    """Returns scores of all items for all users, from their known pairs."""
    return model.score(known) if mode == "user" else model.score(known.T).T


def measure(scores, ratings, split):
    """Returns the means of `METRICS` over the users of a split."""
    targets = ratings.targets(split)
    scores = scores[ratings.user_rows(split)]
    top = ranking.top_items(scores, ratings.history(split), 20)
    return [
        of_each(top[:, :k], targets).mean()
        for of_each in (ranking.precision, ranking.ndcg)
        for k in (5, 20)
    ]


class Validate(keras.callbacks.Callback):
    """Early stopping by NDCG@20 of the validation pairs."""

    def __init__(self, ratings, mode):
        super().__init__()
        self.ratings = ratings
        self.mode = mode
        self.ndcg = {}

    @property
    def best_epoch(self):
        """The first epoch with the highest NDCG@20."""
        return max(self.ndcg, key=self.ndcg.get)

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates every `MEASURED_EVERY` epochs."""
        epochs = epoch + 1
        if epochs % MEASURED_EVERY:
            return
        scores = score(self.model, self.ratings.known_pairs("train"), self.mode)
        self.ndcg[epochs] = measure(scores, self.ratings, "validation")[-1]
        self.model.stop_training = epochs - self.best_epoch >= PATIENCE


def replicate(ratings, mode, seed):
    """Trains with early stopping, then on all pairs; returns the test metrics."""
    start = time.perf_counter()
    validate = Validate(ratings, mode)
    train(ratings.known_pairs("train"), mode, MAX_EPOCHS, seed, [validate])
    epochs = validate.best_epoch
    chosen = time.perf_counter()
    known = ratings.known_pairs("test")
    model = train(known, mode, epochs, seed)
    print(
        f"seed {seed}: {epochs} epochs, the best of {max(validate.ndcg)} (validation "
        f"NDCG@20 {validate.ndcg[epochs]:.4f}; {chosen - start:.0f} s), retrained "
        f"in {time.perf_counter() - chosen:.0f} s"
    )
    return measure(score(model, known, mode), ratings, "test")


def main():
    """Runs all seeds; prints each result and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ratings", help="MovieLens 100K, as kgen.data.ratings reads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mode", choices=RATES, default="item")
    arguments = parser.parse_args()
    results = {}
    for seed in range(arguments.seeds):
        ratings = open_ratings(
            arguments.ratings,
            min_rating=None,
            min_items=1,
            split_strategy="random",
            seed=seed,
        )
        if seed == 0:
            print(ratings.describe(), flush=True)
        reached = {
            f"CFGAN, {arguments.mode}s": replicate(ratings, arguments.mode, seed)
        }
        known = ratings.known_pairs("test")
        for baseline in (EASE(l2=300.0), Popularity()):
            scores = baseline.fit(known).score(known)
            reached[baseline.name] = measure(scores, ratings, "test")
        for name, values in reached.items():
            results.setdefault(name, []).append(values)
            cells = zip(METRICS, values, strict=True)
            print(f"  {name:<14}", *(f"{m} {v:.4f} " for m, v in cells), flush=True)
    print(f"mean (standard deviation) over {arguments.seeds} seeds; the paper: {PAPER}")
    print(f"{'':<14}" + "".join(f"{metric:>18}" for metric in METRICS))
    for name, values in results.items():
        means = np.mean(values, axis=0)
        deviations = np.std(values, axis=0, ddof=min(1, len(values) - 1))
        cells = zip(means, deviations, strict=True)
        print(f"{name:<14}" + "".join(f"{m:>10.4f} ({d:.4f})" for m, d in cells))


if __name__ == "__main__":
    main()
