"""Training and generation rates of a small GPT: kgen against PyTorch.

The same model on both sides, nanoGPT's smallest with biases: 4 layers, 4 heads, width
128, 65 tokens, learned positions, a tied embedding, tanh GELU.

- `train`: context 64, batches of 12 windows, equal on all sides; AdamW with a learning
  rate of 1e-3, weight decay on matrices, gradients clipped at 1. `kgen` is `model.fit`
  with XLA, `plain` without; `pytorch` is the usual loop with fused AdamW, `compiled`
  the same under torch.compile, which needs a C++ compiler.
- `generate`: 511 tokens after a prompt of one, context 512, batch 1, greedy, with the
  same weights. `kgen` is `model.generate` compiled by XLA; `uncached` runs the whole
  text for each token, in one compiled function; `pytorch` is a loop with a KV cache.

The sides alternate: see paired_timing.py. Run it on an idle machine.

    python benchmarks/gpt_rates.py train input.txt --torch-python env/bin/python
    python benchmarks/gpt_rates.py generate input.txt --torch-python env/bin/python
"""

import math
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import paired_timing

SIDES = {
    "train": ("kgen", "plain", "pytorch", "compiled"),
    "generate": ("kgen", "uncached", "pytorch"),
}
RATIOS = {
    "train": {("kgen", "pytorch"): 1.6, ("kgen", "compiled"): 1.6},
    "generate": {("kgen", "uncached"): 5.0, ("kgen", "pytorch"): 1.5},
}
LAYERS, HEADS, WIDTH, TOKENS = 4, 4, 128, 65
CONTEXT, BATCH_SIZE, STEPS = 64, 12, 200  # steps per round
NEW_TOKENS = 511
BLOCK_LAYERS = (
    "first_norm",
    "second_norm",
    "qkv",
    "attention_output",
    "mlp_up",
    "mlp_down",
)


def prepare(source, folder):
    """Writes the windows of all steps, and the weights for `generate`."""
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
    layers = [model.embedding, model.position_embedding]
    for block in model.blocks:
        layers += [getattr(block, name) for name in BLOCK_LAYERS]
    weights = [w for layer in [*layers, model.norm] for w in layer.get_weights()]
    arrays = {f"{index:03d}": array for index, array in enumerate(weights)}
    np.savez(os.path.join(folder, "weights.npz"), **arrays)
    print(text.describe())


def make_model(context):
    """Returns the model of kgen's sides, always with the same weights."""
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


def train_with_kgen(folder, rounds, reporter, side):
    """Trains in one call of `fit`; each epoch after the first is a round."""
    import numpy as np
    import tensorflow as tf

    from kgen.data import Pipeline
    from kgen.nn import Adam, MeanGradient

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
        estimator=MeanGradient(clip_norm=1.0),
        steps_per_execution=STEPS,
        jit_compile=side == "kgen",
    )
    paired_timing.fit_in_rounds(reporter, model, pipeline, rounds, loss="loss")


def generate_with_kgen(folder, rounds, reporter, side):
    """Generates with the KV cache, or without."""
    import tensorflow as tf

    model = make_model(CONTEXT + 448)
    model.jit_compile = True
    next_token = tf.function(
        lambda tokens: tf.argmax(model(tokens)[:, -1:], axis=2, output_type=tf.int32),
        input_signature=[tf.TensorSpec([1, None], tf.int32)],
    )

    def generate():
        if side == "kgen":
            return model.generate([[0]], max_new_tokens=NEW_TOKENS, temperature=0)[0]
        tokens = tf.constant([[0]])
        for _ in range(NEW_TOKENS):
            tokens = tf.concat([tokens, next_token(tokens)], axis=1)
        return tokens.numpy()[0, 1:]

    run_rounds(generate, rounds, reporter, f"TensorFlow {tf.__version__}")


def run_rounds(generate, rounds, reporter, what):
    """Generates once to warm up, then in each round; the loss is the tokens' sum."""
    generate()
    reporter.ready(what)
    for _ in range(rounds):
        reporter.wait()
        generated = generate()
        reporter.report(NEW_TOKENS, float(sum(int(token) for token in generated)))


def torch_model(context):
    """Returns the model of PyTorch's sides, called with tokens and a KV cache."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.attention_output = nn.Linear(WIDTH, WIDTH)
            self.mlp_up = nn.Linear(WIDTH, 4 * WIDTH)
            self.mlp_down = nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x, cache=None, position=0):
            batch, time, _ = x.shape
            heads = self.qkv(self.first_norm(x)).split(WIDTH, dim=2)
            q, k, v = (
                one.view(batch, time, HEADS, -1).transpose(1, 2) for one in heads
            )
            if cache is not None:
                cache[0, :, :, position : position + time] = k
                cache[1, :, :, position : position + time] = v
                k, v = cache[:, :, :, : position + time]
            mixed = functional.scaled_dot_product_attention(
                q, k, v, is_causal=cache is None
            )
            x = x + self.attention_output(
                mixed.transpose(1, 2).reshape(batch, time, WIDTH)
            )
            up = functional.gelu(self.mlp_up(self.second_norm(x)), approximate="tanh")
            return x + self.mlp_down(up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(TOKENS, WIDTH)
            self.position_embedding = nn.Embedding(context, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    smaller = name.endswith(("output.weight", "down.weight"))
                    scale = 0.02 / math.sqrt(2 * LAYERS) if smaller else 0.02
                    nn.init.normal_(parameter, std=scale)
                elif "norm" not in name:
                    nn.init.zeros_(parameter)

        def forward(self, tokens, caches=None, position=0):
            positions = torch.arange(position, position + tokens.shape[1])
            x = self.embedding(tokens) + self.position_embedding(positions)
            for index, block in enumerate(self.blocks):
                x = block(x, None if caches is None else caches[index], position)
            return self.norm(x) @ self.embedding.weight.T

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    return Model()


def train_with_pytorch(folder, rounds, reporter, side):
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
    reporter.ready(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for _ in range(rounds):
        reporter.wait()
        loss = train()
        reporter.report(STEPS * BATCH_SIZE, loss)


def generate_with_pytorch(folder, rounds, reporter, side):
    """Generates in a loop with a KV cache, with the weights of kgen's model."""
    import numpy as np
    import torch

    context = CONTEXT + 448
    model = torch_model(context)
    with np.load(os.path.join(folder, "weights.npz")) as stored:
        weights = [torch.from_numpy(stored[name]) for name in sorted(stored.files)]
    take_weights(model, weights)

    @torch.inference_mode()
    def generate():
        caches = torch.zeros(LAYERS, 2, 1, HEADS, context, WIDTH // HEADS)
        token, generated = torch.tensor([[0]]), []
        for position in range(NEW_TOKENS):
            token = model(token, caches, position)[:, -1:].argmax(2)
            generated.append(int(token))
        return generated

    run_rounds(generate, rounds, reporter, f"PyTorch {torch.__version__}")


def take_weights(model, weights):
    """Copies kgen's weights, in order, into PyTorch's model."""
    import torch

    values = iter(weights)
    with torch.no_grad():
        model.embedding.weight.copy_(next(values))
        model.position_embedding.weight.copy_(next(values))
        for block in model.blocks:
            for layer in (getattr(block, name) for name in BLOCK_LAYERS):
                layer.weight.copy_(next(values).T)
                layer.bias.copy_(next(values))
        model.norm.weight.copy_(next(values))
        model.norm.bias.copy_(next(values))


def main():
    """Reads the command line and compares; in a side's process, runs it."""
    what = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in SIDES else "train"
    parser = paired_timing.parser_of_sides(__doc__.split("\n")[0], SIDES[what])
    parser.add_argument("what", choices=SIDES)
    parser.add_argument("text", help="text file")
    options = parser.parse_args()
    if options.side:
        ours = options.side in ("kgen", "plain", "uncached")
        run = {
            ("train", True): train_with_kgen,
            ("train", False): train_with_pytorch,
            ("generate", True): generate_with_kgen,
            ("generate", False): generate_with_pytorch,
        }[what, ours]
        run(options.text, options.rounds, paired_timing.Reporter(), options.side)
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
