"""Training rate of a 64x64 DCGAN in images per second: kgen against PyTorch.

The same model on all sides: the DCGAN of Radford et al. (2016) for 64x64 RGB images,
widths 64 to 512, batch norm in both networks (but for the discriminator's first layer),
100 latents, the non-saturating loss, Adam with a learning rate of 2e-4 and beta_1 of
0.5 for both, batches of 64, no moving average. A step updates both networks, with the
same passes on all sides: the generator once, the discriminator on the real images, on
the generated ones, and again on these for the generator.

- `kgen`, `kgen_bfloat16`: `model.fit`, precision `float32` and `mixed_bfloat16`.
- `pytorch`, `pytorch_bfloat16`: the usual loop, as in PyTorch's own DCGAN example, with
  channels_last memory, fused Adam and `zero_grad(set_to_none=True)`, in float32 and
  under bfloat16 autocast. Its last pass computes unused gradients of the
  discriminator's weights.
- `pytorch_frozen`: float32 without these: `requires_grad_(False)` during that pass.

Images are random bytes in memory, so that only training is measured; all sides shuffle
and scale them in each round. The sides alternate: see paired_timing.py. Run it on an
idle machine.

    python benchmarks/gan_training_rate.py --torch-python torch_env/bin/python
"""

import itertools
import os
import sys

import paired_timing

SIDES = ("kgen", "pytorch", "pytorch_frozen", "kgen_bfloat16", "pytorch_bfloat16")
RATIOS = {
    ("kgen", "pytorch"): 1.2,
    ("kgen", "pytorch_frozen"): 1.2,
    ("kgen_bfloat16", "pytorch_bfloat16"): None,
    ("kgen_bfloat16", "pytorch"): None,
}
BATCH_SIZE = 64
STEPS = 12  # per round
LATENT_DIM = 100
WIDTHS = (64, 128, 256, 512)


def random_images():
    """Returns the data of a round: uint8 [768, 64, 64, 3]."""
    import numpy as np

    generator = np.random.default_rng(0)
    shape = (BATCH_SIZE * STEPS, 64, 64, 3)
    return generator.integers(0, 256, shape, dtype=np.uint8)


def train_with_kgen(variant, rounds, reporter):
    """Trains in one call of `fit`; each epoch after the first is a round."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    import kgen.data
    from kgen.models import GAN
    from kgen.nn import Adam

    keras.utils.set_random_seed(0)
    images = random_images()
    data = kgen.data.open_images(
        {"x_train": images, "x_validation": images[:64], "x_test": images[:64]}
    )
    pipeline = data.pipeline("train", batch_size=BATCH_SIZE, shuffle=True)
    model = GAN(
        image_shape=(64, 64, 3),
        latent_dim=LATENT_DIM,
        base_channels=WIDTHS[0],
        discriminator_normalization="batch",
        ema_half_life=0,
        dtype="mixed_bfloat16" if variant == "bfloat16" else "float32",
    )
    model.compile(
        Adam(2e-4, beta_1=0.5), Adam(2e-4, beta_1=0.5), steps_per_execution=STEPS
    )

    paired_timing.fit_in_rounds(
        reporter, model, pipeline, rounds, loss="discriminator_loss"
    )


def train_with_pytorch(variant, rounds, reporter):
    """Trains in a plain loop."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())

    def block(kind, inputs, outputs, norm, activation):
        convolution = kind(inputs, outputs, 4, 2, 1, bias=not norm)
        layers = [convolution, nn.BatchNorm2d(outputs)] if norm else [convolution]
        return [*layers, activation]

    def leaky():
        return nn.LeakyReLU(0.2)

    down, up = nn.Conv2d, nn.ConvTranspose2d
    generator = nn.Sequential(
        nn.Linear(LATENT_DIM, 4 * 4 * WIDTHS[-1], bias=False),
        nn.Unflatten(1, (WIDTHS[-1], 4, 4)),
        nn.BatchNorm2d(WIDTHS[-1]),
        nn.ReLU(),
        *(
            layer
            for inputs, outputs in itertools.pairwise(reversed(WIDTHS))
            for layer in block(up, inputs, outputs, True, nn.ReLU())
        ),
        *block(up, WIDTHS[0], 3, False, nn.Tanh()),
    ).to(memory_format=torch.channels_last)
    discriminator = nn.Sequential(
        *block(down, 3, WIDTHS[0], False, leaky()),
        *(
            layer
            for inputs, outputs in itertools.pairwise(WIDTHS)
            for layer in block(down, inputs, outputs, True, leaky())
        ),
        nn.Flatten(),
        nn.Linear(4 * 4 * WIDTHS[-1], 1),
    ).to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
        for net in (discriminator, generator)
    ]
    images = torch.from_numpy(random_images()).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=torch.channels_last)

    def step(batch):
        real = batch.float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bfloat16"):
            fake = generator(torch.randn(len(real), LATENT_DIM))
            optimizers[0].zero_grad(set_to_none=True)
            real_logits = discriminator(real)
            fake_logits = discriminator(fake.detach())
            loss = functional.softplus(-real_logits) + functional.softplus(fake_logits)
        loss = loss.mean()
        loss.backward()
        optimizers[0].step()
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bfloat16"):
            optimizers[1].zero_grad(set_to_none=True)
            discriminator.requires_grad_(variant != "frozen")
            generator_loss = functional.softplus(-discriminator(fake)).mean()
        generator_loss.backward()
        optimizers[1].step()
        discriminator.requires_grad_(True)
        return loss.detach()

    def train():
        order = torch.randperm(len(images))
        return sum(step(images[rows]) for rows in order.split(BATCH_SIZE)) / STEPS

    train()
    reporter.ready(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        reporter.wait()
        loss = train()
        reporter.report(len(images), float(loss))


def main():
    """Reads the command line and compares; in a side's process, trains."""
    options = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES).parse_args()
    if options.side is None:
        arguments = [__file__, "--rounds", str(options.rounds), "--side"]
        pythons = {"kgen": sys.executable, "pytorch": options.torch_python}
        commands = {
            side: [pythons[side.split("_")[0]], *arguments, side]
            for side in options.sides
        }
        paired_timing.compare(commands, options.rounds, RATIOS)
        return
    library, _, variant = options.side.partition("_")
    train = train_with_kgen if library == "kgen" else train_with_pytorch
    train(variant, options.rounds, paired_timing.Reporter())


if __name__ == "__main__":
    main()
