"""Base of text models: tokenizer, transformer layers, checks of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kgen.data.graph_tokenizers import decode_ids, runs_in_graph
from kgen.data.tokenizer_interface import Tokenizer
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec, MaskSpec, TextSpec, TokenSpec
from kgen.nn.layers import layers_of_policy
from kgen.nn.transformer import TransformerBlock

ROWS_AT_A_TIME = 64  # bounds the memory


class TextModelMixin:
    """Methods of text models, to be mixed in with `GenerativeModel`.

    Attributes:
        tokenizer: The tokenizer, or None: the model takes tokens alone.
        vocab_size: Number of tokens.
        highest_token: Highest token of valid inputs.
    """

    compatibility_arguments: tuple[str, ...] = ("tokenizer",)

    tokenizer: Any
    vocab_size: Any
    highest_token: int
    context: int
    hidden_dim: int
    num_heads: int
    num_layers: int
    dropout: float
    dtype_policy: Any
    batch_specs: dict[str, InputSpec]
    check_argument: Any
    trainable_variables: Any

    def take_tokenizer(
        self, tokenizer: Tokenizer | None, vocab_size: int | None
    ) -> None:
        """Sets the tokenizer and the vocabulary size, which follows from it."""
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                "`tokenizer` must be a tokenizer of kgen.data, such as "
                f"CharTokenizer.of_text(text). Received: {type(tokenizer).__name__}"
            )
        self.tokenizer = tokenizer
        if vocab_size is None and tokenizer is not None:
            vocab_size = tokenizer.vocab_size
        self.vocab_size = vocab_size

    def check_transformer_arguments(self) -> None:
        """Checks the arguments that all transformers take.

        Raises:
            ValueError: An argument is out of its range.
        """
        check = self.check_argument
        known = self.vocab_size is not None and self.vocab_size >= 2
        check("vocab_size", known, "be 2 or more, or follow from a tokenizer")
        if self.tokenizer is not None:
            same = self.vocab_size == self.tokenizer.vocab_size
            check(
                "vocab_size", same, f"be the tokenizer's, {self.tokenizer.vocab_size}"
            )
        even = self.hidden_dim >= 2 and self.hidden_dim % (2 * self.num_heads) == 0
        check(
            "hidden_dim", even, f"be a multiple of 2 * num_heads, {2 * self.num_heads}"
        )

    def declare_batches(self, has_mask: bool) -> None:
        """Declares tokens, an optional loss mask, and row weights."""
        self.batch_specs = {"tokens": TokenSpec(high=self.highest_token)}
        if has_mask:
            self.batch_specs["mask"] = MaskSpec()
        self.batch_specs["sample_weight"] = InputSpec(low=0, optional=True)

    def make_transformer(self, rotary: bool = True) -> None:
        """Makes and builds the layers of a transformer.

        Args:
            rotary: Whether positions are encoded by rotation, or else by the vectors of
                `position_embedding`.
        """
        self.rotary = rotary

        def vectors(number):  # An initializer used again gives the same numbers.
            normal = keras.initializers.RandomNormal(stddev=0.02)
            layer = keras.layers.Embedding(number, self.hidden_dim, normal)
            layer.build((None, None))
            return layer

        with layers_of_policy(self.dtype_policy):
            self.embedding = vectors(self.highest_token + 1)
            self.blocks = [
                TransformerBlock(
                    self.num_heads,
                    rotary=rotary,
                    dropout=self.dropout,
                    num_blocks=self.num_layers,
                )
                for _ in range(self.num_layers)
            ]
            self.norm = keras.layers.LayerNormalization(epsilon=1e-5)
            if not rotary:
                self.position_embedding = vectors(self.context)
        for layer in (*self.blocks, self.norm):
            layer.build((None, None, self.hidden_dim))

    def prepare_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Excludes norms and biases from weight decay."""
        if not optimizer.weight_decay:
            return
        vectors = [v for v in self.trainable_variables if len(v.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: int32 [time].

        Raises:
            ValueError: The model has no tokenizer, or a character is unknown to it.
        """
        if self.tokenizer is None:
            raise ValueError(
                "A model without a tokenizer takes tokens. Received: text. Give lists "
                "of whole numbers, or make it with tokenizer=."
            )
        return self.tokenizer.encode(text)

    def transformer_layers(self) -> tuple[keras.layers.Layer, ...]:
        """Returns the layers that `make_transformer` made."""
        layers = (self.embedding, *self.blocks, self.norm)
        return layers if self.rotary else (*layers, self.position_embedding)

    def tokenizer_files(self) -> dict[str, str]:
        """Files that users of an export need to tokenize text: {file name: content}."""
        return (
            {}
            if self.tokenizer is None
            else {"tokenizer.json": self.tokenizer.to_json()}
        )

    def token_inputs(self, max_tokens: int | None) -> dict[str, InputSpec]:
        """Spec of the input of a signature that takes texts of these many tokens."""
        spec = TokenSpec(high=self.highest_token, min_tokens=1, max_tokens=max_tokens)
        return {"tokens": spec}

    def text_forms(self, name: str, signatures: list[Signature]) -> list[Signature]:
        """Returns signatures, in SavedModel with text in the place of tokens.

        That is where the tokenizer runs in a graph. Generated tokens become text, too.

        Args:
            name: Name of the input of texts.
            signatures: Signatures with an input "tokens".
        """
        if self.tokenizer is None or not runs_in_graph(self.tokenizer):
            return signatures
        forms = []
        for one in signatures:
            others = tuple(other for other in one.runtimes if other != "saved_model")
            of_tokens = dataclasses.replace(one, runtimes=others)
            forms += [self._text_form(name, one), of_tokens]
        return forms

    def _text_form(self, name, signature):
        inputs = dict(signature.inputs)
        tokens = inputs.pop("tokens")
        spec = TextSpec(min_tokens=tokens.min_tokens, max_tokens=tokens.max_tokens)

        def encoded(inputs):
            tokens = spec.encode(name, inputs.pop(name), self.tokenizer)
            return {"tokens": tokens, **inputs}

        def function(**inputs):
            outputs = signature.function(**encoded(inputs))
            if "generated" not in outputs:
                return outputs
            return {"text": decode_ids(self.tokenizer, outputs["generated"])}

        def example(num_rows):
            values = signature.example(num_rows)
            # The mask of a BERT has no text.
            tokens = np.minimum(values.pop("tokens"), self.vocab_size - 1)
            return {
                name: [self.tokenizer.decode(row).encode() for row in tokens],
                **values,
            }

        margins = signature.margins
        is_generated = "generated" in signature.outputs
        return dataclasses.replace(
            signature,
            function=function,
            inputs={name: spec, **inputs},
            outputs={"text": "text"} if is_generated else signature.outputs,
            runtimes=("saved_model",),
            examples=(example,),
            margins=margins and (lambda **inputs: margins(**encoded(inputs))),
        )

    def check_tokens(self, tokens: Any) -> np.ndarray:
        """The tokens of one row: int32 [time].

        Raises:
            ValueError: The row is empty, or a token is unknown to the model.
        """
        row = np.asarray(tokens)
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise ValueError(
                "Each row must be a text or a list of whole numbers, tokens. Received: "
                f"{type(tokens).__name__} of {row.dtype} with {row.ndim} dimensions. "
                "One row alone is a list in a list."
            )
        if not len(row):
            raise ValueError(
                "A text must hold a token at least. Received: none. A new line, '\\n', "
                "begins one."
            )
        if row.min() < 0 or row.max() > self.highest_token:
            raise ValueError(
                f"Tokens must lie in [0, {self.highest_token}]. Received: from "
                f"{row.min()} to {row.max()}."
            )
        return row.astype(np.int32)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of tokens, padded with -1 at the end: int32 [batch, longest]."""
    tokens = np.full([len(rows), max(map(len, rows), default=0)], -1, np.int32)
    for padded_row, row in zip(tokens, rows, strict=True):
        padded_row[: len(row)] = row
    return tokens
