"""What the recipes of language models share: their text, and samples to read."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from kgen.recipes.base import Recipe, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """A recipe whose data are text, as one stream of tokens."""

    use: ClassVar[str] = "kgen generate {run} --prompt TEXT --stream"

    data: str = option(
        "python-manual",
        "Text: a file, a folder or zip of them, JSON Lines, or a name of "
        "tensorflow-datasets; default: the manual that comes with Python.",
    )
    text_key: str = option("text", "Key of the text in JSON Lines, or in a data set.")
    tokenizer: Literal["char", "byte", "bpe"] = option(
        "char", "What a token is: a character, a byte, or a pair code that is learned."
    )
    vocab_size: int | None = option(None, "Number of tokens of bpe, 256 or more.")
    context: int = option(64, "Tokens, at most, that one is predicted from.")
    validation_fraction: float = option(
        0.1, "Share of the text, at its end, that is not trained on."
    )

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the text."""
        from kgen.data import open_text

        return open_text(
            self.data,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            context=self.context,
            validation_fraction=self.validation_fraction,
            text_key=self.text_key,
            data_dir=self.data_dir,
            download=download,
        )

    def evaluate(
        self,
        model: Any,
        data: Any,
        *,
        split: str = "validation",
        limit: int | None = None,
        progress: Any = None,
        **options: Any,
    ) -> list[Any]:
        """Measures prediction and writing; see `evaluate_language_model`.

        Args:
            model: The model.
            data: What `open_data` returned.
            split: "validation" or "train"; "test" is the validation, too.
            limit: Fewer texts than the usual 50, and windows than all.
            progress: Called with the number of texts that are written, and their total.
            **options: Of other models alone: not used here.
        """
        from kgen.evaluation import evaluate_language_model

        split = "validation" if split == "test" else split  # There is no test part.
        return evaluate_language_model(
            model, data, split=split, limit=limit, seed=self.seed, progress=progress
        )
