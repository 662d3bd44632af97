"""Signatures: the functions of a model that Python, exports and the server call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared.specs import InputSpec

# Kinds of outputs. Each layer that treats them apart has one table by kind.
OUTPUT_KINDS = ("image", "latent", "scores", "items", "tokens", "text", "state")
OPTIONS_SUFFIX = "_with_options"

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Function of a model, with the specs of its inputs and kinds of its outputs.

    The model's own verbs, SavedModel, ONNX, the server, the command line and the
    conformance suite are made from these records and from nothing else.

    Attributes:
        name: Name in every runtime, such as "generate".
        function: Takes the inputs as keyword tensors and returns a dict of outputs;
            TensorFlow operations over `layers` only.
        inputs: Spec of each input; the first dimension is the batch.
        outputs: Kind of each output, of `OUTPUT_KINDS`. "image": in [0, 1]. "items":
            ids by falling scores, which are the output "scores". "tokens", "text":
            generated one after the other. "state": an input of another signature.
        layers: Keras layers that the function uses: all that an export holds.
        examples: Functions from a number of rows to valid inputs, one for each size of
            input to verify an export with; by default the examples of the specs.
        role: "default"; "prefill" and "decode" for the two halves of generation in
            chunks, joined by the outputs of the kind "state".
        runtimes: Runtimes that it exists in.
        tolerance: Largest difference from Keras that an export may show: absolute for
            values up to 1, relative for larger ones.
        resources: Lookup tables that the function uses.
        metadata: Further metadata of an ONNX file.
        files: Text files that users of an export need, such as a tokenizer.json, by
            name: beside an ONNX file, in `assets.extra` of a SavedModel.
        max_rows: Most rows of one call; more are split.
        verified_rows: Rows of the largest batch that verifies an export; fewer than 64
            where a row takes megabytes.
        margins: For generated tokens: takes the inputs and returns the margin between
            the best two candidates of each token, float32 [batch, time]. Where it is
            next to nothing, runtimes may legitimately diverge.
    """

    name: str
    function: Callable[..., dict[str, tf.Tensor]]
    inputs: dict[str, InputSpec]
    outputs: dict[str, str]
    layers: tuple[keras.layers.Layer, ...]
    examples: tuple[Callable[[int], Arrays], ...] = ()
    role: str = "default"
    runtimes: tuple[str, ...] = ("saved_model", "onnx")
    tolerance: float = 1e-5
    resources: tuple[Any, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    max_rows: int = 256
    verified_rows: int = 64
    margins: Callable[..., tf.Tensor] | None = None

    def describe(self) -> dict[str, Any]:
        """Returns role, inputs and kinds of outputs as JSON values, for clients."""
        inputs = {name: spec.describe() for name, spec in self.inputs.items()}
        return {"role": self.role, "inputs": inputs, "outputs": self.outputs}

    def tensor_specs(self) -> dict[str, tf.TensorSpec]:
        """Types of the inputs, named for the graph."""
        return {name: spec.tensor_spec(name) for name, spec in self.inputs.items()}

    def example(self, num_rows: int) -> Arrays:
        """Valid inputs of this number of rows, always the same ones."""
        if self.examples:
            return self.examples[0](num_rows)
        rng = np.random.default_rng(num_rows)
        return {
            name: spec.cast(spec.example(rng, num_rows))
            for name, spec in self.inputs.items()
        }

    @functools.cached_property
    def compiled(self) -> Any:
        """A tf.function of the inputs in order, which carry their names.

        Assertions of the rules of the inputs stand before the function.
        """

        def call(*tensors):
            given = dict(zip(self.inputs, tensors, strict=True))
            return self.function(
                **{k: self.inputs[k].assert_in_graph(k, v) for k, v in given.items()}
            )

        specs = [*self.tensor_specs().values()]
        return tf.function(call, input_signature=specs, autograph=False)

    def __call__(self, **values: Any) -> Arrays:
        """Computes the outputs of any number of rows, at most `max_rows` at a time.

        Args:
            **values: As for `check`.

        Raises:
            ValueError: As `check`.
        """
        arrays = self.check(**values)
        num_rows = len(next(iter(arrays.values())))
        parts = []
        for start in range(0, max(num_rows, 1), self.max_rows):
            rows = slice(start, start + self.max_rows)
            outputs = self.compiled(*(tf.constant(a[rows]) for a in arrays.values()))
            parts.append({name: value.numpy() for name, value in outputs.items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def check(self, **values: Any) -> Arrays:
        """Returns valid inputs as arrays in the types of the tensors.

        Args:
            **values: The inputs by name, one value for each row, or, of numbers, one
                for all. Where one is None, or is not given, its default stands for it.

        Raises:
            ValueError: An input is missing, unknown, invalid, or of other rows.
        """
        given = {name: value for name, value in values.items() if value is not None}
        unknown = sorted(given.keys() - self.inputs.keys())
        missing = [
            name
            for name, spec in self.inputs.items()
            if name not in given and spec.default is None
        ]
        if unknown or missing:
            raise ValueError(
                f"`{self.name}` takes {', '.join(self.inputs)}. Received: "
                f"{', '.join(given) or 'nothing'}. "
                + (f"Leave out {', '.join(unknown)}. " * bool(unknown))
                + (f"Give {', '.join(missing)}, one for each row." * bool(missing))
            )
        arrays: Arrays = {}
        num_rows: int | None = None
        for name, spec in self.inputs.items():
            value: Any = given.get(name, spec.default)
            if np.ndim(value) == 0 and not spec.shape:
                value = np.full([1 if num_rows is None else num_rows], value)
            arrays[name] = spec.cast(spec.check(name, value, num_rows))
            num_rows = len(arrays[name])
        return arrays


def with_short_forms(signatures: list[Signature]) -> list[Signature]:
    """Adds to signatures with options the form without them, under the plain name.

    An option is an input with a default. SavedModel and ONNX have no defaults: the form
    that takes all options is renamed NAME_with_options.
    """
    forms = []
    for signature in signatures:
        options = {k: s for k, s in signature.inputs.items() if s.default is not None}
        if options:
            forms.append(_without(signature, options))
            name = f"{signature.name}{OPTIONS_SUFFIX}"
            signature = dataclasses.replace(signature, name=name)
        forms.append(signature)
    return forms


def _without(signature: Signature, options: dict[str, InputSpec]) -> Signature:
    needed = {k: s for k, s in signature.inputs.items() if k not in options}
    first = next(iter(needed))

    def function(**inputs):
        rows = tf.shape(inputs[first])[:1]
        defaults = {
            name: tf.fill(rows, tf.constant(spec.default, spec.dtype))
            for name, spec in options.items()
        }
        return signature.function(**inputs, **defaults)

    def example(num_rows):
        values = signature.example(num_rows)
        return {name: values[name] for name in needed}

    return dataclasses.replace(
        signature, function=function, inputs=needed, examples=(example,)
    )


def trace(
    function: Callable[..., Any], *, jit_compile: bool = False, **inputs: Any
) -> Any:
    """Compiles a function of keyword tensors, once for all sizes of its inputs.

    With `jit_compile` XLA compiles what was traced, once for each of the sizes.
    """
    compiled = tf.function(function, jit_compile=jit_compile or None)
    return compiled.get_concrete_function(**inputs)
