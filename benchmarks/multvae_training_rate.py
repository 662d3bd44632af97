"""Training rate of Mult-VAE in people per second: kgen against PyTorch.

The same model on both sides: Liang et al. (2018), items-600-200-600-items, tanh, an
input of length 1 of which half of the items are left out, the multinomial likelihood
over all items, a KL weight of 0.2, Adam with a learning rate of 1e-3, batches of 500.

- `kgen`: `model.fit`; items travel ragged and become rows on the device.
- `pytorch`: the usual loop; the rows of a batch are made dense from a sparse matrix,
  with fused Adam and `zero_grad(set_to_none=True)`.

The ratings (every pair counts) lie in memory; both sides shuffle them anew. How the
sides take turns: see paired_timing.py. Run it on a machine with nothing else to do.

    python benchmarks/multvae_training_rate.py RATINGS --torch-python env/bin/python
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import paired_timing

SIDES = ("kgen", "pytorch")
RATIOS = {("kgen", "pytorch"): 1.5}
BATCH_SIZE = 500
HIDDEN, LATENT, DROPOUT, KL_WEIGHT = 600, 200, 0.5, 0.2


def read(path):
    """Starts, columns and number of columns of the sparse matrix [people, items]."""
    import numpy as np

    with np.load(path) as saved:
        return saved["starts"], saved["columns"], int(saved["num_items"])


def write(ratings, path):
    """Writes all people's items where both sides find them."""
    import numpy as np

    from kgen.data import open_ratings

    opened = open_ratings(ratings, min_rating=None, min_items=1)
    history = opened.history("train")
    np.savez(
        path,
        starts=history.indptr,
        columns=history.indices,
        num_items=opened.num_items,
    )
    print(opened.describe())


def train_with_kgen(path, rounds, turn):
    """Trains in one call of `fit`; a callback waits for the paired_timing."""
    import keras
    import tensorflow as tf

    from kgen.data import Pipeline
    from kgen.models import MultVAE
    from kgen.nn.optimizers import Adam

    starts, columns, num_items = read(path)
    people = tf.RaggedTensor.from_row_splits(columns, starts)
    num_people = len(starts) - 1
    steps = num_people // BATCH_SIZE

    def read_rows(rows, epoch, places):
        return {"items": tf.gather(people, rows)}

    keras.utils.set_random_seed(0)
    pipeline = Pipeline(
        num_people, read_rows, batch_size=BATCH_SIZE, shuffle=True, drop_remainder=True
    )
    model = MultVAE(
        item_ids=range(num_items),
        hidden_units=(HIDDEN,),
        latent_dim=LATENT,
        input_dropout=DROPOUT,
        kl_weight=KL_WEIGHT,
    )
    model.compile(Adam(1e-3), steps_per_execution=steps)
    paired_timing.fit_in_turns(turn, model, pipeline, rounds, loss="loss")


def train_with_pytorch(path, rounds, turn):
    """Trains in a plain loop."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    starts, columns, num_items = read(path)
    num_people = len(starts) - 1

    def rows_of(people):
        lengths = starts[people + 1] - starts[people]
        dense = np.zeros((len(people), num_items), np.float32)
        places = np.concatenate([columns[starts[p] : starts[p + 1]] for p in people])
        dense[np.repeat(np.arange(len(people)), lengths), places] = 1.0
        return torch.from_numpy(dense)

    encoder = nn.Sequential(
        nn.Linear(num_items, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT)
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, num_items)
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step(people):
        rows = rows_of(people)
        optimizer.zero_grad(set_to_none=True)
        inputs = functional.dropout(functional.normalize(rows), DROPOUT)
        mean, log_variance = encoder(inputs).chunk(2, dim=1)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        log_shares = functional.log_softmax(decoder(code), dim=1)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1)
        loss = (KL_WEIGHT * kl - (log_shares * rows).sum(dim=1)).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def train():
        order = np.random.permutation(num_people)
        steps = num_people // BATCH_SIZE
        batches = order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        return float(np.mean([step(people) for people in batches]))

    train()
    turn.ready(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        turn.wait()
        loss = train()
        turn.report(num_people // BATCH_SIZE * BATCH_SIZE, loss)


def main():
    """Reads the command line; as a side, trains."""
    parser = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES)
    parser.add_argument("ratings", help="file or folder that kgen.data.ratings reads")
    options = parser.parse_args()
    if options.side:
        train = train_with_kgen if options.side == "kgen" else train_with_pytorch
        train(options.ratings, options.rounds, paired_timing.Turns())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ratings.npz")
        write(options.ratings, path)
        arguments = [__file__, path, "--rounds", str(options.rounds), "--side"]
        pythons = {"kgen": sys.executable, "pytorch": options.torch_python}
        commands = {side: [pythons[side], *arguments, side] for side in options.sides}
        paired_timing.compare(commands, options.rounds, RATIOS)


if __name__ == "__main__":
    main()
