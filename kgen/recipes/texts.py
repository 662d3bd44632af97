"""Options of all recipes of language models: text, transformer and AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from kgen.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    Share,
)
from kgen.recipes.recipe import Recipe, Source, batch_size_option, option, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """A recipe whose data are text, as one stream of tokens."""

    evaluations = ("evaluate_language_model",)

    data: Source = setting(
        "python-manual",
        "Text: a file, a folder or zip of them, JSON Lines, or a name of "
        "tensorflow-datasets; default: the manual that comes with Python.",
    )
    text_key: str = option("text", "Key of the text in JSON Lines, or in a data set.")
    tokenizer: Literal["char", "byte", "bpe"] = option(
        "char", "Unit of a token: a character, a byte, or a learned byte-pair code."
    )
    vocab_size: PositiveInt | None = option(
        None, "Number of tokens of bpe, 256 or more."
    )
    context: PositiveInt = option(
        64, "Largest number of tokens that one is predicted from."
    )
    validation_fraction: ProperFraction = option(
        0.1, "Share of the text, at its end, for validation."
    )

    batch_size: PositiveInt | None = batch_size_option(12, "Windows")
    learning_rate: PositiveFloat = option(3e-3, "Highest learning rate of AdamW.")
    warmup_steps: NonNegativeInt = option(
        100, "Steps over which the learning rate rises from 0."
    )
    gradient_clip_norm: PositiveFloat | None = option(
        1.0, "Largest norm of the gradient."
    )
    weight_decay: NonNegativeFloat = option(0.1, "Of AdamW, on matrices alone.")
    jit_compile: bool = option(True, "Compile the step with XLA, on one device.")
    num_layers: PositiveInt = option(4, "Blocks of attention and dense layers.")
    num_heads: PositiveInt = option(4, "Heads of each attention.")
    hidden_dim: PositiveInt = option(
        128, "Length of a token's vector, divisible by the heads."
    )
    dropout: Share = option(0.0, "Dropout rate of the vectors.")

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the tokenizer."""
        return {"tokenizer": data.tokenizer}

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
