"""Options of all recipes of language models: text, transformer and AdamW."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from kgen.recipes.recipe import Recipe, batch_size_option, option, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """A recipe whose data are text, as one stream of tokens."""

    evaluations = ("evaluate_language_model",)
    rules = Recipe.rules | {
        "validation_fraction": (
            "above 0 and below 1: every run is validated",
            lambda share: 0 < share < 1,
        ),
        "weight_decay": ("0 or more, and finite", lambda decay: 0 <= decay < math.inf),
    }

    data: str = setting(
        "python-manual",
        "Text: a file, a folder or zip of them, JSON Lines, or a name of "
        "tensorflow-datasets; default: the manual that comes with Python.",
    )
    text_key: str = option("text", "Key of the text in JSON Lines, or in a data set.")
    tokenizer: Literal["char", "byte", "bpe"] = option(
        "char", "Unit of a token: a character, a byte, or a learned byte-pair code."
    )
    vocab_size: int | None = option(None, "Number of tokens of bpe, 256 or more.")
    context: int = option(64, "Largest number of tokens that one is predicted from.")
    validation_fraction: float = option(
        0.1, "Share of the text, at its end, for validation."
    )

    batch_size: int | None = batch_size_option(12, "Windows")
    learning_rate: float = option(3e-3, "Highest learning rate of AdamW, above 0.")
    warmup_steps: int = option(100, "Steps over which the learning rate rises from 0.")
    gradient_clip_norm: float | None = option(1.0, "Largest norm of the gradient.")
    weight_decay: float = option(0.1, "Of AdamW, on matrices alone, 0 or more.")
    jit_compile: bool = option(True, "Compile the step with XLA, on one device.")
    num_layers: int = option(4, "Blocks of attention and dense layers, 1 or more.")
    num_heads: int = option(4, "Heads of each attention, 1 or more.")
    hidden_dim: int = option(128, "Length of a token's vector, divisible by the heads.")
    dropout: float = option(0.0, "Dropout rate of the vectors, in [0, 1).")

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the tokenizer."""
        return {"tokenizer": data.tokenizer.config()}

    def optimizers(self, steps_per_epoch: int) -> list[Any]:
        """Returns Adam with decoupled weight decay."""
        decay = self.weight_decay
        return [self.adam(steps_per_epoch, beta_2=0.99, weight_decay=decay)]

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the text."""
        from kgen.data import open_text

        return self.call(open_text, self.data, download=download)

    def evaluate(self, model: Any, data: Any, **options: Any) -> list[Any]:
        """Measures the model; the test split is the validation split."""
        if options.get("split", "test") == "test":
            options["split"] = "validation"
        return super().evaluate(model, data, **options)
