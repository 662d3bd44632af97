"""Training rate of a small VAE in images per second: kgen against PyTorch.

The same model on all sides: 784-400-20, relu, one Bernoulli likelihood per pixel, Adam
with a learning rate of 1e-3, batches of 128 grey MNIST images, float32, shuffled in
each epoch. The sides:

- `kgen`: `model.fit` with the recipe's model, pipeline and settings (32 steps per call
  of the compiled function).
- `dataloader`: PyTorch's usual loop over a DataLoader of a TensorDataset, with the
  fastest of 0, 1 and 2 worker processes, chosen before the measurement.
- `compiled`: `torch.compile` on model and loss, batches indexed out of one tensor in
  memory by a permutation.

Both PyTorch sides use the fused Adam and `zero_grad(set_to_none=True)`. A round (see
paired_timing.py) is an epoch, from the permutation to the end of the last step.

Run it on an idle machine. PyTorch's threads synchronise after each operation and lose
far more to other programs than TensorFlow's threads: on a busy machine the ratios are
too high.

    python benchmarks/vae_training_rate.py --data-dir path/to/tensorflow_datasets
"""

import argparse
import os
import sys
import tempfile
import time

import paired_timing

SIDES = ("kgen", "dataloader", "compiled")
RATIOS = {("kgen", "dataloader"): 1.5, ("kgen", "compiled"): 1.2}
BATCH_SIZE = 128


# -- the sides ------------------------------------------------------------------


def train_with_kgen(options, reporter):
    """Trains in one call of `fit`; each epoch after the first is a round."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import numpy as np

    from kgen.recipes.vae import VAERecipe

    recipe = VAERecipe(
        data=options.data,
        data_dir=options.data_dir,
        batch_size=BATCH_SIZE,
        binarize="none",
        likelihood="bernoulli",
        prior="normal",
        network="mlp",
        hidden_units=(400,),
        latent_dim=20,
        activation="relu",
        jit_compile=True,
        epochs=1000,  # far more than the rounds: the learning rate hardly decays
    )
    data = recipe.open_data()
    batches = data.pipeline("train", batch_size=1000).dataset()
    rows = np.concatenate([batch["images"] for batch in batches.as_numpy_iterator()])
    np.save(options.rows, rows.reshape(len(rows), -1))
    pipeline, _ = recipe.pipelines(data)
    model = recipe.make_model(data, pipeline.steps_per_epoch)

    paired_timing.fit_in_rounds(reporter, model, pipeline, options.rounds, loss="loss")


def train_with_pytorch(options, reporter):
    """Trains in a plain loop over a DataLoader, or over indices, compiled."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(os.cpu_count())

    class VAE(nn.Module):
        """A VAE whose call returns a batch's negative ELBO, in nats per image."""

        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * 20)
            )
            self.decoder = nn.Sequential(
                nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)
            )

        def forward(self, images):
            mean, log_variance = self.encoder(images).chunk(2, dim=1)
            noise = torch.randn_like(mean)
            logits = self.decoder(mean + torch.exp(0.5 * log_variance) * noise)
            reconstruction = functional.binary_cross_entropy_with_logits(
                logits, images, reduction="sum"
            )
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            return (reconstruction + kl) / len(images)

    images = torch.from_numpy(np.load(options.rows)).float() / 255
    steps = len(images) // BATCH_SIZE
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    compute_loss = torch.compile(model) if options.side == "compiled" else model

    def indexed():
        order = torch.randperm(len(images))[: steps * BATCH_SIZE]
        for indices in order.split(BATCH_SIZE):
            yield images[indices]

    def loaded(num_workers, rows=images):
        loader = DataLoader(
            TensorDataset(rows),
            batch_size=BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        return lambda: (batch for (batch,) in loader)

    def train_epoch(batches):
        total = torch.zeros([])
        for batch in batches():
            optimizer.zero_grad(set_to_none=True)
            loss = compute_loss(batch)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total) / steps

    def seconds(num_workers):
        batches = loaded(num_workers, images[: 100 * BATCH_SIZE])
        train_epoch(batches)  # starts the worker processes
        start = time.perf_counter()
        train_epoch(batches)
        return time.perf_counter() - start

    what = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    if options.side == "compiled":
        batches = indexed
        train_epoch(batches)
    else:
        times = {number: seconds(number) for number in (0, 1, 2)}
        num_workers = min(times, key=lambda number: times[number])
        what += f", num_workers={num_workers}"
        batches = loaded(num_workers)
        train_epoch(batches)
    reporter.ready(what)
    for _ in range(options.rounds):
        reporter.wait()
        loss = train_epoch(batches)
        reporter.report(steps * BATCH_SIZE, loss)


def main():
    """Reads the command line and compares; in a side's process, trains."""
    parser = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES)
    test_data = os.environ.get("KGEN_TEST_DATA")
    parser.add_argument("--data", default="mnist", help="28x28 grey images")
    parser.add_argument(
        "--data-dir",
        default=os.path.join(test_data, "tfds") if test_data else None,
        help="folder of prepared tensorflow-datasets",
    )
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "kgen":
        train_with_kgen(options, paired_timing.Reporter())
    elif options.side:
        train_with_pytorch(options, paired_timing.Reporter())
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--rounds", str(options.rounds), "--data", options.data]
            arguments += ["--rows", os.path.join(folder, "rows.npy")]
            if options.data_dir:
                arguments += ["--data-dir", options.data_dir]
            commands = {}
            for side in options.sides:
                python = sys.executable if side == "kgen" else options.torch_python
                commands[side] = [python, __file__, "--side", side, *arguments]
            paired_timing.compare(commands, options.rounds, RATIOS)


if __name__ == "__main__":
    main()
