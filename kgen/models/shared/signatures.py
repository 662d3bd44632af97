"""Signatures: the functions of a model that exports, the server and tests call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Signature:
    """One thing an exported model can be asked for.

    SavedModel, ONNX, the conformance suite and the server are made from these records
    and from nothing else.

    Attributes:
        name: What it is called in every runtime, such as "generate".
        function: Takes the inputs as keyword tensors and returns a dict of outputs;
            TensorFlow operations over `layers` only.
        inputs: Specification of each input, the batch first and of any size.
        outputs: Kind of each output: "image", in [0, 1]; "png", image files; "latent",
            "scores"; "items": ids by falling scores, which are the signature's
            "scores"; "tokens" or "text", that are written one after the other; "state",
            numbers that another signature goes on from.
        layers: The Keras layers the function uses: all that an export holds.
        example: Makes valid inputs of n rows, for the exporter's proof.
        runtimes: Where it exists.
        tolerance: Largest difference from Keras that an export may show: absolute for
            values up to 1, relative for larger ones.
        resources: Lookup tables that the function uses.
        metadata: What an ONNX file says besides its name and kind.
        files: Text files, by name, that whoever uses an export needs, such as a
            tokenizer.json: beside an ONNX file, in `assets.extra` of a SavedModel.
        proof_rows: Rows of the largest batch of the proof: fewer than 64 where a row
            takes megabytes.
        margins: Of a signature that writes tokens: takes its inputs and returns by how
            much each token was ahead of the second best, float32 [batch, time]. Where
            that is next to nothing, a runtime may write another one, and from there on
            another text.
    """

    name: str
    function: Callable[..., dict[str, tf.Tensor]]
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, str]
    layers: tuple[keras.layers.Layer, ...]
    example: Callable[[int], dict[str, np.ndarray]]
    runtimes: tuple[str, ...] = ("saved_model", "onnx")
    tolerance: float = 1e-5
    resources: tuple[Any, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    proof_rows: int = 64
    margins: Callable[..., tf.Tensor] | None = None
