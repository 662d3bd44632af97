"""`kgen fit gpt`: language models that generate text."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from kgen.arguments import PositiveInt
from kgen.recipes.recipe import option, setting
from kgen.recipes.texts import TextRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTRecipe(TextRecipe):
    """GPT: generates text token by token (default: Python's manual).

    Lab record. TensorFlow 2.21, Keras 3.15, float32, XLA, on two cores of an AMD EPYC,
    2026-11-25, seed 0. Loss of the whole validation split, the last tenth, in windows
    of 64 that do not overlap; the first tokens of a window are predicted from few.

    `kgen fit gpt --preset shakespeare --data input.txt` (Tiny Shakespeare, 65
    characters; 4 layers, 4 heads, 128 wide, context 64, 801,664 parameters): 1.676
    nats, 2.418 bits per character, after 62 s of training (1.847 after 31 s); with the
    frequencies of characters 3.336 nats.

    `--preset shakespeare_3min`: 1.541 nats, 2.223 bits, after 160 s of training. Fifty
    texts of 400 characters: 0.991 of five words in a row are not in the training text
    (of the validation text itself 0.982), self-BLEU 0.081 (0.119), different words
    over words 0.269 (0.244).

    On two cores of a Xeon with AMX, 2026-11-28: 1.674 and 1.546 nats (by 20 random
    batches, as nanoGPT estimates it, 1.677 and 1.547), after 3 and 10 minutes, beside
    other work.

    `benchmarks/gpt_rates.py` on that Xeon: this size with learned positions trains 0.94
    times (0.89 to 1.16, 5 pairs) as fast as PyTorch 2.13, eager, and 0.90 (0.83 to
    1.15) as torch.compile; on the EPYC, with a step that was a fifth longer, 1.32 (1.15
    to 1.54, 8 pairs) and 1.33 (1.17 to 1.46). At a context of 512, 511 tokens are
    generated 52 times (44 to 61, 8 pairs) as fast as without the cache, and 2.9 times
    (1.8 to 9.2) as fast as by a cached loop in PyTorch.
    """

    recipe_name: ClassVar[str] = "gpt"
    model_name: ClassVar[str] = "GPT"

    epochs: PositiveInt = option(2, "Passes over the training text.")
    # Converting and verifying the decoding loop takes as long as an epoch.
    export: Literal["none", "saved_model", "onnx", "all"] = setting(
        "none", "Formats to export after training; all: both."
    )
    positions: Literal["rotary", "learned"] = option(
        "rotary", "Position encoding; with learned ones, text ends at the context."
    )

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the tokenizer, and the length of its tokens."""
        options = super().model_options(data, steps_per_epoch)
        ratio = len(data.tokens("train")) / data.characters("train")
        return options | {"tokens_per_character": ratio}

    def sample(self, model: Any, data: Any) -> str:
        """Generates two continuations of the beginning of the validation text."""
        tokens = data.tokens("validation")[: max(self.context // 2, 1)]
        # There are no more learned positions than the context.
        room = 4 * len(tokens) if model.is_endless else self.context - len(tokens)
        prompt = data.tokenizer.decode(tokens)
        found = model.generate([tokens] * 2, max_new_tokens=room, seeds=0)
        texts = [data.tokenizer.decode(one) for one in found]
        return "".join(f"{prompt}|{text}\n\n{'-' * 72}\n\n" for text in texts)


_SHAKESPEARE = GPTRecipe(name="gpt-shakespeare", data="tiny_shakespeare")
PRESETS = {
    "shakespeare": _SHAKESPEARE,
    "shakespeare_3min": dataclasses.replace(
        _SHAKESPEARE, name="gpt-shakespeare-3min", epochs=5
    ),
}
