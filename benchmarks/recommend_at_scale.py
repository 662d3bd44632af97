"""Memory and time of a recommender with the users and items of MovieLens 20M.

The ratings are synthetic: each user has 20 items plus an exponential number, 73 on
average, drawn independently from items whose popularity falls as 1 / (rank + 50). That
is 137,000 users x 21,000 items with about 10 million pairs. There is nothing to learn
in them; only memory and time are measured.

Prints the peak memory of the process after each stage (a dense matrix of users by items
would be 11.5 GB), the time of an epoch, and the latency of single requests to the
exported model.

    python benchmarks/recommend_at_scale.py
"""

import argparse
import os
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from kgen import data, export, training
from kgen.models import MultVAE
from kgen.nn import Adam

MIN_ITEMS, MEAN_MORE = 20, 53  # items per user: minimum, and mean above it
NUM_REQUESTS = 500


def make_ratings(num_users, num_items, seed=0):
    """Returns users and items of all pairs: two arrays int32 [pairs]."""
    rng = np.random.default_rng(seed)
    counts = MIN_ITEMS + rng.exponential(MEAN_MORE, num_users).astype(int)
    popularity = 1.0 / (np.arange(num_items) + 50)
    users = np.repeat(np.arange(num_users, dtype=np.int32), counts)
    thresholds = np.cumsum(popularity) / popularity.sum()
    items = np.searchsorted(thresholds, rng.random(len(users))).astype(np.int32)
    return users, np.minimum(items, num_items - 1)


def report(what, since):
    """Prints a stage, its seconds and the process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - since
    print(f"{what:<44} {seconds:7.1f} s   peak {peak:.2f} GB", flush=True)


def main():
    """Makes ratings, trains, exports and times requests."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=137_000)
    parser.add_argument("--items", type=int, default=21_000)
    options = parser.parse_args()

    report("TensorFlow is imported", time.perf_counter())
    start = time.perf_counter()
    # Repeated pairs count once.
    ratings = data.open_ratings(make_ratings(options.users, options.items))
    print(ratings.describe())
    report("ratings made, opened and split", start)

    pipeline = ratings.pipeline(
        "train", batch_size=500, shuffle=True, drop_remainder=True
    )
    model = MultVAE(item_ids=ratings.item_ids.tolist())
    model.compile(Adam(1e-3), steps_per_execution=10)
    start = time.perf_counter()
    training.fit(
        model,
        pipeline,
        epochs=1,
        validation=ratings.pipeline("validation", batch_size=500),
        callbacks=[keras.callbacks.CSVLogger(os.devnull)],
    )
    report(f"one epoch, {pipeline.steps_per_epoch} steps of 500 users", start)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = export.to_saved_model(model, folder)
        report("exported and verified", start)
        recommend = tf.saved_model.load(made).signatures["recommend"]
        history = ratings.history("test")
        milliseconds = []
        for row in range(min(NUM_REQUESTS, history.shape[0])):
            ids = ratings.item_ids[history[[row]].indices][None]
            begin = time.perf_counter()
            recommend(item_ids=tf.constant(ids, tf.int64))["item_ids"].numpy()
            milliseconds.append(1000 * (time.perf_counter() - begin))
    middle, slow = np.quantile(milliseconds, (0.5, 0.99))
    print(f"one request, exported: p50 {middle:.2f} ms, p99 {slow:.2f} ms")


if __name__ == "__main__":
    main()
