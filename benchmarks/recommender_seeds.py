"""Paired comparison of a recommender with its baselines over several seeds.

Each seed changes the split, the initial weights and the noise. The model is trained and
evaluated as by `kgen fit` and `kgen evaluate`, on the test users. The difference of the
means over users to EASE (to the kNN of titles and genres where items are held out) is
taken seed by seed; its interval is Student's t, 95 %.

    python benchmarks/recommender_seeds.py --seeds 10 multvae --preset ml_100k
"""

import argparse
import dataclasses
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import scipy.stats
from workers import make_recipe

from kgen import training

METRICS = ("recall@20", "recall@50", "ndcg@100", "precision@5", "precision@20")


def train(recipe):
    """Returns the trained model and its data."""
    data = recipe.open_data()
    pipeline, _ = recipe.pipelines(data)
    keras.utils.set_random_seed(recipe.seed)
    model = recipe.make_model(data, pipeline.steps_per_epoch)
    training.fit(
        model, pipeline, epochs=recipe.epochs, callbacks=[training.StopOnNonFinite()]
    )
    return model, data


def main():
    """Runs all seeds; prints each result and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("recipe", help="as in kgen fit RECIPE ...")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="... OPTIONS")
    arguments = parser.parse_args()
    first = make_recipe([arguments.recipe, *arguments.options])
    results = {}
    for seed in range(arguments.seeds):
        recipe = dataclasses.replace(first, seed=seed)
        start = time.perf_counter()
        model, data = train(recipe)
        seconds = time.perf_counter() - start
        if seed == 0:
            print(data.describe())
        for record in recipe.evaluate(model, data):
            if record.metric in METRICS:
                # The options of a baseline may differ from seed to seed.
                name = record.subject.partition(" (")[0] or arguments.recipe
                results.setdefault((name, record.metric), []).append(record.value)
                reference = record.baseline[0].partition(" (")[0]
        ndcg = " ".join(
            f"{name} {values[-1]:.4f}"
            for (name, metric), values in results.items()
            if metric == "ndcg@100"
        )
        print(f"seed {seed}: trained in {seconds:.0f} s; ndcg@100 {ndcg}", flush=True)
    print(f"mean (standard deviation) over {arguments.seeds} seeds")
    print(f"{'':<14}" + "".join(f"{metric:>18}" for metric in METRICS))
    for name in dict.fromkeys(name for name, _ in results):
        cells = (np.array(results[name, metric]) for metric in METRICS)
        print(
            f"{name:<14}"
            + "".join(f"{v.mean():>10.4f} ({v.std(ddof=1):.4f})" for v in cells)
        )
    for metric in METRICS:
        gains = np.subtract(
            results[arguments.recipe, metric], results[reference, metric]
        )
        error = scipy.stats.t.ppf(0.975, len(gains) - 1) * scipy.stats.sem(gains)
        print(f"{metric}: less {reference} {gains.mean():+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
