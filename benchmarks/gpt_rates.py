"""GPT against PyTorch: tokens per second, trained and written.

The same model on both sides, nanoGPT's small one with biases: 4 layers, 4 heads, 128
wide, 65 tokens, learned positions, a tied embedding, tanh GELU.

- `train`: context 64, batches of 12 windows, the same ones for all sides; AdamW with a
  rate of 1e-3, weight decay on matrices, gradients clipped at 1. `kgen` is `model.fit`
  with XLA, `plain` without; `pytorch` is the usual loop with fused AdamW, `compiled`
  the same by torch.compile, which needs a C++ compiler.
- `write`: 511 tokens from one, context 512, batch 1, greedy, from the same weights.
  `kgen` is `model.generate` compiled by XLA; `uncached` reads the whole text anew for
  each token, by one compiled function; `pytorch` is a loop with a key-value cache.

How the sides take turns: see paired_timing.py. Run it on a machine with nothing else
to do.

    python benchmarks/gpt_rates.py train input.txt --torch-python env/bin/python
    python benchmarks/gpt_rates.py write input.txt --torch-python env/bin/python
"""

import math
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import paired_timing

SIDES = {
    "train": ("kgen", "plain", "pytorch", "compiled"),
    "write": ("kgen", "uncached", "pytorch"),
}
RATIOS = {
    "train": {("kgen", "pytorch"): 1.6, ("kgen", "compiled"): 1.6},
    "write": {("kgen", "uncached"): 5.0, ("kgen", "pytorch"): 1.5},
}
LAYERS, HEADS, WIDTH, TOKENS = 4, 4, 128, 65
CONTEXT, BATCH_SIZE, STEPS = 64, 12, 200  # steps of a turn
WRITTEN = 511
BLOCK = ("first_norm", "second_norm", "heads", "mix", "up", "down")


def prepare(source, folder):
    """Writes the windows of all steps, and weights to write with."""
    import numpy as np

    from kgen.data import open_text

    text = open_text(source, context=CONTEXT)
    tokens = text.tokens("train")
    starts = np.random.default_rng(0).integers(
        0, len(tokens) - CONTEXT, (STEPS, BATCH_SIZE)
    )
    windows = tokens[starts[..., None] + np.arange(CONTEXT + 1)]
    np.save(os.path.join(folder, "windows.npy"), windows.astype(np.int64))
    model = make_model(CONTEXT + 448)
    layers = [model.embedding, model.places]
    for block in model.blocks:
        layers += [getattr(block, name) for name in BLOCK]
    weights = [w for layer in [*layers, model.norm] for w in layer.get_weights()]
    arrays = {f"{index:03d}": array for index, array in enumerate(weights)}
    np.savez(os.path.join(folder, "weights.npz"), **arrays)
    print(text.describe())


def make_model(context):
    """The model of kgen's sides, always with the same weights."""
    import keras

    from kgen.models import GPT

    keras.utils.set_random_seed(0)
    return GPT(
        vocab_size=TOKENS,
        context=context,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        positions="learned",
    )


def train_with_kgen(folder, rounds, turn, side):
    """Trains in one call of `fit`; a callback waits for the paired_timing."""
    import numpy as np
    import tensorflow as tf

    from kgen.data import Pipeline
    from kgen.nn.optimizers import Adam

    windows = np.load(os.path.join(folder, "windows.npy")).astype(np.int32)
    windows = tf.constant(windows.reshape(-1, CONTEXT + 1))
    pipeline = Pipeline(
        STEPS * BATCH_SIZE,
        lambda rows, *_: {"tokens": tf.gather(windows, rows)},
        batch_size=BATCH_SIZE,
        drop_remainder=True,
    )
    model = make_model(CONTEXT)
    model.compile(
        Adam(1e-3, beta_2=0.99, weight_decay=0.1),
        gradient_clip_norm=1.0,
        steps_per_execution=STEPS,
        jit_compile=side == "kgen",
    )
    paired_timing.fit_in_turns(turn, model, pipeline, rounds, loss="loss")


def write_with_kgen(folder, rounds, turn, side):
    """Writes with the cache, or reads everything anew for each token."""
    import tensorflow as tf

    model = make_model(CONTEXT + 448)
    model.jit_compile = True
    next_token = tf.function(
        lambda tokens: tf.argmax(model(tokens)[:, -1:], axis=2, output_type=tf.int32),
        input_signature=[tf.TensorSpec([1, None], tf.int32)],
    )

    def write():
        if side == "kgen":
            return model.generate([[0]], max_new_tokens=WRITTEN, temperature=0)[0]
        tokens = tf.constant([[0]])
        for _ in range(WRITTEN):
            tokens = tf.concat([tokens, next_token(tokens)], axis=1)
        return tokens.numpy()[0, 1:]

    take_turns(write, rounds, turn, f"TensorFlow {tf.__version__}")


def take_turns(write, rounds, turn, what):
    """Writes once to warm up, and then in turn; the "loss" is the tokens' checksum."""
    write()
    turn.ready(what)
    for _ in range(rounds):
        turn.wait()
        written = write()
        turn.report(WRITTEN, float(sum(int(token) for token in written)))


def torch_model(context):
    """The model of PyTorch's sides, a module whose call takes tokens and a cache."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.heads, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up = nn.Linear(WIDTH, 4 * WIDTH)
            self.down = nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x, cache=None, place=0):
            batch, time, _ = x.shape
            heads = self.heads(self.first_norm(x)).split(WIDTH, dim=2)
            q, k, v = (
                one.view(batch, time, HEADS, -1).transpose(1, 2) for one in heads
            )
            if cache is not None:
                cache[0, :, :, place : place + time] = k
                cache[1, :, :, place : place + time] = v
                k, v = cache[:, :, :, : place + time]
            mixed = functional.scaled_dot_product_attention(
                q, k, v, is_causal=cache is None
            )
            x = x + self.mix(mixed.transpose(1, 2).reshape(batch, time, WIDTH))
            up = functional.gelu(self.up(self.second_norm(x)), approximate="tanh")
            return x + self.down(up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(TOKENS, WIDTH)
            self.places = nn.Embedding(context, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    smaller = name.endswith(("mix.weight", "down.weight"))
                    scale = 0.02 / math.sqrt(2 * LAYERS) if smaller else 0.02
                    nn.init.normal_(parameter, std=scale)
                elif "norm" not in name:
                    nn.init.zeros_(parameter)

        def forward(self, tokens, caches=None, place=0):
            places = torch.arange(place, place + tokens.shape[1])
            x = self.embedding(tokens) + self.places(places)
            for index, block in enumerate(self.blocks):
                x = block(x, None if caches is None else caches[index], place)
            return self.norm(x) @ self.embedding.weight.T

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    return Model()


def train_with_pytorch(folder, rounds, turn, side):
    """Trains in a plain loop, compiled or not."""
    import numpy as np
    import torch
    from torch.nn import functional

    windows = torch.from_numpy(np.load(os.path.join(folder, "windows.npy")))
    model = torch_model(CONTEXT)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    call = torch.compile(model) if side == "compiled" else model

    def train():
        total = 0.0
        for batch in windows:
            logits = call(batch[:, :-1])
            loss = functional.cross_entropy(
                logits.reshape(-1, TOKENS), batch[:, 1:].reshape(-1)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach())
        return total / len(windows)

    train()
    turn.ready(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        turn.wait()
        loss = train()
        turn.report(STEPS * BATCH_SIZE, loss)


def write_with_pytorch(folder, rounds, turn, side):
    """Writes in a loop with a cache, from the weights of kgen's model."""
    import numpy as np
    import torch

    context = CONTEXT + 448
    model = torch_model(context)
    with np.load(os.path.join(folder, "weights.npz")) as stored:
        weights = [torch.from_numpy(stored[name]) for name in sorted(stored.files)]
    take_weights(model, weights)

    @torch.inference_mode()
    def write():
        caches = torch.zeros(LAYERS, 2, 1, HEADS, context, WIDTH // HEADS)
        token, written = torch.tensor([[0]]), []
        for place in range(WRITTEN):
            token = model(token, caches, place)[:, -1:].argmax(2)
            written.append(int(token))
        return written

    take_turns(write, rounds, turn, f"PyTorch {torch.__version__}")


def take_weights(model, weights):
    """Puts kgen's weights, in their order, into PyTorch's model."""
    import torch

    values = iter(weights)
    with torch.no_grad():
        model.embedding.weight.copy_(next(values))
        model.places.weight.copy_(next(values))
        for block in model.blocks:
            for layer in (getattr(block, name) for name in BLOCK):
                layer.weight.copy_(next(values).T)
                layer.bias.copy_(next(values))
        model.norm.weight.copy_(next(values))
        model.norm.bias.copy_(next(values))


def main():
    """Reads the command line; as a side, takes its paired_timing."""
    what = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in SIDES else "train"
    parser = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES[what])
    parser.add_argument("what", choices=SIDES)
    parser.add_argument("text", help="file that kgen.data.text reads")
    options = parser.parse_args()
    if options.side:
        ours = options.side in ("kgen", "plain", "uncached")
        run = {
            ("train", True): train_with_kgen,
            ("train", False): train_with_pytorch,
            ("write", True): write_with_kgen,
            ("write", False): write_with_pytorch,
        }[what, ours]
        run(options.text, options.rounds, paired_timing.Turns(), options.side)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.text, folder)
        arguments = [__file__, what, folder, "--rounds", str(options.rounds), "--side"]
        torch_sides = ("pytorch", "compiled")
        commands = {
            side: [
                options.torch_python if side in torch_sides else sys.executable,
                *arguments,
                side,
            ]
            for side in options.sides
        }
        unit = "windows" if what == "train" else "tokens"
        paired_timing.compare(commands, options.rounds, RATIOS[what], unit=unit)


if __name__ == "__main__":
    main()
