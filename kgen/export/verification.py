"""Verification: an export computes what Keras computes, in a process without kgen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kgen.export.comparison import (
    COMPARISONS,
    NO_TIE,
    TIED_TOKENS,
    TOLERANCES,
    Pair,
)
from kgen.export.image_files import with_image_files
from kgen.export.manifest import ExportError
from kgen.export.runtime_process import runtime_process
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature, with_short_forms

# One row, a few, and a whole batch (`Signature.verified_rows`): a graph that fixed its
# batch size, or broadcasts where it should not, differs on one of them.
ONE, FEW = 1, 3

# Inputs or outputs by name, for each batch size.
Batches = dict[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Verification:
    """The difference between one signature of an export and Keras.

    Attributes:
        signature: The signature's name.
        difference: The largest one over batches of 1, 3 and `verified_rows`, of the
            output that comes closest to its tolerance. Absolute for values up to 1,
            such as pixels; relative to larger ones; of image files the share of the
            pixels that are off by one.
        tolerance: The largest difference that is accepted of this output.
        milliseconds: Median time of a call with one row, in the runtime on the CPU.
        notes: Rows in which two tokens were equally likely, and it took the other one.
    """

    signature: str
    difference: float
    tolerance: float
    milliseconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export(os.PathLike):
    """An exported file or folder, loaded again and compared with Keras.

    It can be passed wherever a path is taken.

    Attributes:
        path: The ONNX file, or the folder of this version of the SavedModel.
        verifications: One for each signature it holds.
        num_bytes: Its size.
        seconds: The time of writing and proving it.
        request: The command that asks TensorFlow Serving for the first signature; empty
            for ONNX files.
    """

    path: Path
    verifications: tuple[Verification, ...]
    num_bytes: int
    seconds: float
    request: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        head = f"{self.path} ({self.num_bytes / 1e6:.2f} MB, {self.seconds:.1f} s)"
        lines = [
            f"  {one.signature}: differs from Keras by at most "
            f"{one.difference:.1e}, tolerance {one.tolerance:.0e}; "
            f"a row takes {one.milliseconds:.3g} ms"
            + "".join(f"\n    {note}" for note in one.notes)
            for one in self.verifications
        ]
        return "\n".join([head, *lines])


def signatures_for(model: GenerativeModel, runtime: str) -> list[Signature]:
    """The signatures of a model that exist in a runtime, in float32.

    A SavedModel has variants for image files as well; see `with_image_files`.

    Raises:
        ExportError: There are none.
    """
    signatures = with_short_forms(model.float32_clone().signatures())
    if runtime == "saved_model":
        signatures = with_image_files(signatures)
    chosen = [signature for signature in signatures if runtime in signature.runtimes]
    if not chosen:
        names = ", ".join(signature.name for signature in signatures)
        raise ExportError(
            f"A {runtime} export needs a signature that exists in this runtime. "
            f"Received: {type(model).__name__} with {names or 'none at all'}."
        )
    return chosen


def verify(
    path: Path, signatures: Sequence[Signature], runtime: str
) -> tuple[Verification, ...]:
    """Compares an export with Keras, in a process that does not import kgen.

    Both sides compute on the CPU, whatever this process trains on: the matrix products
    of a GPU are rounded more coarsely than the tolerances allow.

    Args:
        path: The export.
        signatures: The signatures that it must hold.
        runtime: "saved_model" or "onnx".

    Raises:
        ExportError: It does not load or run, differs by more than the tolerance of a
            signature, or computes a row differently in another batch.
    """
    largest: dict[str, Verification] = {}
    for index in range(max(max(len(one.examples), 1) for one in signatures)):
        # Each size of example is a job; a signature without any has that of its specs.
        chosen = [
            replace(one, examples=one.examples[index : index + 1])
            for one in signatures
            if index < max(len(one.examples), 1)
        ]
        for found in _verify(path, chosen, runtime):
            known = largest.setdefault(found.signature, found)
            if found.difference / found.tolerance > known.difference / known.tolerance:
                largest[found.signature] = found
    return tuple(largest.values())


def _verify(
    path: Path, signatures: Sequence[Signature], runtime: str
) -> list[Verification]:
    """Compares an export with Keras on the first example of each signature."""
    process = runtime_process(runtime)
    trials = [_Trial(signature) for signature in signatures]
    answer = process.run(path, {one.signature.name: one.inputs for one in trials})
    if isinstance(answer, str):
        raise ExportError(
            f"The {runtime} export does not run in a process of its own, and was "
            f"deleted: {answer.rstrip('.')}."
        )
    received, milliseconds = answer
    problems: list[str] = []
    verifications = []
    for trial in trials:
        name = trial.signature.name
        outputs = received[name]
        found = trial.structure_problems(outputs)
        if not found:
            gaps, changes = trial.gaps(outputs)
            found = [gap.text for gap in gaps + changes if not gap.share <= 1]
            _, size, tolerance = max(gaps, key=lambda gap: gap.share)
            time, notes = milliseconds[name], trial.tied_rows(outputs)
            verifications.append(Verification(name, size, tolerance, time, notes))
        problems += found
    if problems:
        raise ExportError(
            f"The {runtime} export does not compute what Keras computes, and was "
            f"deleted: {'; '.join(problems)}."
        )
    return verifications


class _Gap(NamedTuple):
    text: str
    size: float
    tolerance: float

    @property
    def share(self) -> float:
        return self.size / self.tolerance


class _Trial:
    """Batches of the first example of a signature, and the outputs of Keras.

    Args:
        signature: The signature.

    Attributes:
        inputs: The first rows of the example, one, few and all.
        expected: The outputs for each batch.
        ties: For each row the position of its first tied token, or NO_TIE.
    """

    def __init__(self, signature: Signature):
        self.signature = signature
        self.num_rows = signature.verified_rows
        self.inputs = self._batches()
        with tf.device("/CPU:0"):
            tensors = {
                size: {name: tf.constant(value) for name, value in batch.items()}
                for size, batch in self.inputs.items()
            }
            self.expected = {
                size: {k: v.numpy() for k, v in signature.function(**batch).items()}
                for size, batch in tensors.items()
            }
            self.ties = np.full(self.num_rows, NO_TIE)
            if signature.margins is not None:
                margins = tf.function(signature.margins, autograph=False)
                tied = margins(**tensors[self.num_rows]).numpy() < TIED_TOKENS
                self.ties = np.where(tied.any(axis=1), tied.argmax(axis=1), NO_TIE)

    def _batches(self) -> Batches:
        example = self.signature.example(self.num_rows)
        if example.keys() != self.signature.inputs.keys():
            raise ExportError(
                f"`example` of the signature {self.signature.name} must make its "
                f"inputs, {sorted(self.signature.inputs)}. Received: {sorted(example)}."
            )
        arrays = {}
        for name, spec in self.signature.inputs.items():
            value = np.asarray(example[name])
            if value.dtype.kind == "U":
                value = np.char.encode(value)
            arrays[name] = value.astype("S" if spec.dtype == "string" else spec.dtype)
        return {
            size: {name: value[:size] for name, value in arrays.items()}
            for size in (ONE, FEW, self.num_rows)
        }

    def structure_problems(self, received: Batches) -> list[str]:
        """Problems with names, types and shapes, which make outputs incomparable."""
        signature, problems = self.signature, []
        for size, ours in self.expected.items():
            theirs = received.get(size, {})
            for where, outputs in (("Keras", ours), ("it", theirs)):
                if outputs.keys() != signature.outputs.keys():
                    return [
                        f"{signature.name} must return {sorted(signature.outputs)}, "
                        f"{where} returned {sorted(outputs)}"
                    ]
            for name in signature.outputs:
                one, other = ours[name], theirs[name]
                wanted, found = (f"{x.dtype} {list(x.shape)}" for x in (one, other))
                if found != wanted:
                    problem = f"is {found} instead of {wanted}"
                elif one.dtype.kind == "f" and np.isnan(one).any():
                    problem = "are NaN in Keras already"
                elif one.shape[:1] != (size,):
                    problem = f"has the shape {list(one.shape)}, not one row for each "
                    problem += "row of the inputs"
                else:
                    continue
                problems.append(f"{signature.name} on {size} rows: {name} {problem}")
        return problems

    def gaps(self, received: Batches) -> tuple[list[_Gap], list[_Gap]]:
        """Differences from Keras; and of a few rows alone and before others."""
        gaps = []
        for size, expected in self.expected.items():
            gaps += self._compare(received[size], expected)
        first = {name: rows[:FEW] for name, rows in received[self.num_rows].items()}
        when = f" when {self.num_rows - FEW} others follow"
        return gaps, self._compare(received[FEW], first, when)

    def _compare(
        self,
        received: dict[str, np.ndarray],
        expected: dict[str, np.ndarray],
        when: str = "",
    ) -> list[_Gap]:
        """Compares each output of a batch by the comparison of its kind."""
        gaps = []
        for name, kind in self.signature.outputs.items():
            rows = len(expected[name])
            pair = Pair(
                received[name],
                expected[name],
                self.signature.tolerance,
                expected.get("scores"),
                self.ties[:rows],
            )
            size = COMPARISONS[kind](pair)
            tolerance = TOLERANCES.get(kind, self.signature.tolerance)
            text = f"{self.signature.name} on {rows} rows: {name} differ by "
            text += f"{size:.3g}{when}, tolerance {tolerance:.3g}"
            gaps.append(_Gap(text, size, tolerance))
        return gaps

    def tied_rows(self, received: Batches) -> tuple[str, ...]:
        """Says which rows of the largest batch continue differently after a tie."""
        ours, theirs = self.expected[self.num_rows], received[self.num_rows]
        differs = np.zeros(self.num_rows, bool)
        for name, kind in self.signature.outputs.items():
            if kind != "state":
                rows = theirs[name] != ours[name]
                differs |= rows.reshape(self.num_rows, -1).any(axis=1)
        ties = self.ties
        return tuple(
            f"row {row}: token {ties[row]} is as likely as another, within "
            f"{TIED_TOKENS}"
            for row in np.flatnonzero(differs & (ties != NO_TIE))
        )
