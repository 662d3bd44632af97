"""Training rate of Mult-VAE in users per second: kgen against PyTorch.

The same model on both sides: Liang et al. (2018), items-600-200-600-items, tanh, inputs
of L2 norm 1 with dropout of 0.5, the multinomial likelihood over all items, a KL weight
of 0.2, Adam with a learning rate of 1e-3, batches of 500 users.

- `kgen`: `model.fit`; ragged items become multi-hot rows inside the step.
- `pytorch`: the usual loop, with multi-hot rows built from a sparse matrix, fused Adam
  and `zero_grad(set_to_none=True)`.

All ratings, as positive pairs, are in memory; both sides shuffle them in each round.
The sides alternate: see paired_timing.py. Run it on an idle machine.

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
    """Returns row starts, columns and the width of the sparse matrix [users, items]."""
    import numpy as np

    with np.load(path) as saved:
        return saved["starts"], saved["columns"], int(saved["num_items"])


def write(ratings, path):
    """Writes all users' items to a file for both sides."""
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


def train_with_kgen(path, rounds, reporter):
    """Trains in one call of `fit`; each epoch after the first is a round."""
    import keras
    import tensorflow as tf

    from kgen.data import Pipeline
    from kgen.models import MultVAE
    from kgen.nn import Adam

    starts, columns, num_items = read(path)
    users = tf.RaggedTensor.from_row_splits(columns, starts)
    num_users = len(starts) - 1
    steps = num_users // BATCH_SIZE

    def read_rows(rows, epoch, positions):
        return {"items": tf.gather(users, rows)}

    keras.utils.set_random_seed(0)
    pipeline = Pipeline(
        num_users, read_rows, batch_size=BATCH_SIZE, shuffle=True, drop_remainder=True
    )
    model = MultVAE(
        item_ids=range(num_items),
        hidden_units=(HIDDEN,),
        latent_dim=LATENT,
        input_dropout=DROPOUT,
        kl_weight=KL_WEIGHT,
    )
    model.compile(Adam(1e-3), steps_per_execution=steps)
    paired_timing.fit_in_rounds(reporter, model, pipeline, rounds, loss="loss")


def train_with_pytorch(path, rounds, reporter):
    """Trains in a plain loop."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    starts, columns, num_items = read(path)
    num_users = len(starts) - 1

    def rows_of(users):
        lengths = starts[users + 1] - starts[users]
        dense = np.zeros((len(users), num_items), np.float32)
        positions = np.concatenate([columns[starts[p] : starts[p + 1]] for p in users])
        dense[np.repeat(np.arange(len(users)), lengths), positions] = 1.0
        return torch.from_numpy(dense)

    encoder = nn.Sequential(
        nn.Linear(num_items, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT)
    )
    decoder = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, num_items)
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step(users):
        rows = rows_of(users)
        optimizer.zero_grad(set_to_none=True)
        inputs = functional.dropout(functional.normalize(rows), DROPOUT)
        mean, log_variance = encoder(inputs).chunk(2, dim=1)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        log_probs = functional.log_softmax(decoder(code), dim=1)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1)
        loss = (KL_WEIGHT * kl - (log_probs * rows).sum(dim=1)).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def train():
        order = np.random.permutation(num_users)
        steps = num_users // BATCH_SIZE
        batches = order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        return float(np.mean([step(users) for users in batches]))

    train()
    reporter.ready(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        reporter.wait()
        loss = train()
        reporter.report(num_users // BATCH_SIZE * BATCH_SIZE, loss)


def main():
    """Reads the command line and compares; in a side's process, trains."""
    parser = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES)
    parser.add_argument("ratings", help="file or folder that kgen.data.ratings reads")
    options = parser.parse_args()
    if options.side:
        train = train_with_kgen if options.side == "kgen" else train_with_pytorch
        train(options.ratings, options.rounds, paired_timing.Reporter())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ratings.npz")
        write(options.ratings, path)
        arguments = [__file__, path, "--rounds", str(options.rounds), "--side"]
        pythons = {"kgen": sys.executable, "pytorch": options.torch_python}
        commands = {side: [pythons[side], *arguments, side] for side in options.sides}
        paired_timing.compare(commands, options.rounds, RATIOS, unit="users")


if __name__ == "__main__":
    main()
