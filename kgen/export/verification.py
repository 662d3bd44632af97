"""Verification: an export computes what Keras computes, in a process without kgen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kgen.export.comparison import COMPARISONS, NO_TIE, TIED_TOKENS, Pair
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
    inputs = {signature.name: _batches(signature) for signature in signatures}
    with tf.device("/CPU:0"):
        expected = {
            signature.name: _run_keras(signature, inputs[signature.name])
            for signature in signatures
        }
        ties = {
            signature.name: _ties(signature, inputs[signature.name])
            for signature in signatures
        }
    answer = process.run(path, inputs)
    if isinstance(answer, str):
        raise ExportError(
            f"The {runtime} export does not run in a process of its own, and was "
            f"deleted: {answer.rstrip('.')}."
        )
    received, milliseconds = answer
    problems: list[str] = []
    verifications = []
    for signature in signatures:
        name = signature.name
        ours, theirs = expected[name], received[name]
        found = _structure_problems(signature, ours, theirs)
        if not found:
            all_rows = theirs[signature.verified_rows]
            first_rows = {key: values[:FEW] for key, values in all_rows.items()}
            others = f" when {signature.verified_rows - FEW} others follow"
            gaps = [
                gap
                for size in ours
                for gap in _compare(signature, theirs[size], ours[size], ties[name])
            ]
            changes = _compare(signature, theirs[FEW], first_rows, ties[name], others)
            found = [gap.text for gap in gaps + changes if not gap.share <= 1]
            largest = max(gaps, key=lambda gap: gap.share)
            notes = _tied_rows(signature, theirs, ours, ties[name])
            verifications.append(
                Verification(
                    name, largest.size, largest.tolerance, milliseconds[name], notes
                )
            )
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


def _compare(
    signature: Signature,
    received: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    ties: np.ndarray,
    when: str = "",
) -> list[_Gap]:
    """Compares each output of a batch by the comparison of its kind."""
    gaps = []
    for name, kind in signature.outputs.items():
        comparison = COMPARISONS[kind]
        num_rows = len(expected[name])
        pair = Pair(
            received[name],
            expected[name],
            signature.tolerance,
            expected.get("scores"),
            ties[:num_rows],
        )
        size = comparison.distance(pair)
        tolerance = comparison.tolerance or signature.tolerance
        text = (
            f"{signature.name} on {num_rows} rows: {name} differ by {size:.3g}{when}, "
            f"tolerance {tolerance:.3g}"
        )
        gaps.append(_Gap(text, size, tolerance))
    return gaps


def _ties(signature: Signature, batches: Batches) -> np.ndarray:
    """For each row the position of its first tied token, or NO_TIE."""
    batch = batches[signature.verified_rows]
    if signature.margins is None:
        return np.full(signature.verified_rows, NO_TIE)
    rows = {name: tf.constant(value) for name, value in batch.items()}
    margins = tf.function(signature.margins, autograph=False)(**rows)
    tied = margins.numpy() < TIED_TOKENS
    return np.where(tied.any(axis=1), tied.argmax(axis=1), NO_TIE)


def _tied_rows(
    signature: Signature, theirs: Batches, ours: Batches, ties: np.ndarray
) -> tuple[str, ...]:
    """Says which rows of the largest batch continue differently after a tie."""
    size = signature.verified_rows
    differs = np.zeros(size, bool)
    for name, kind in signature.outputs.items():
        if kind != "state":
            rows = theirs[size][name] != ours[size][name]
            differs |= rows.reshape(size, -1).any(axis=1)
    return tuple(
        f"row {row}: token {ties[row]} is as likely as another, within {TIED_TOKENS}"
        for row in np.flatnonzero(differs & (ties != NO_TIE))
    )


def _batches(signature: Signature) -> Batches:
    """The first rows, one, few and all, of the same example."""
    example = signature.example(signature.verified_rows)
    if example.keys() != signature.inputs.keys():
        raise ExportError(
            f"`example` of the signature {signature.name} must make its inputs, "
            f"{sorted(signature.inputs)}. Received: {sorted(example)}."
        )
    batches: Batches = {size: {} for size in (ONE, FEW, signature.verified_rows)}
    for name, spec in signature.inputs.items():
        value = np.asarray(example[name])
        if value.dtype.kind == "U":
            value = np.char.encode(value)
        value = value.astype("S" if spec.dtype == "string" else spec.dtype)
        for size, batch in batches.items():
            batch[name] = value[:size]
    return batches


def _run_keras(signature: Signature, batches: Batches) -> Batches:
    return {
        size: {
            name: value.numpy()
            for name, value in signature.function(
                **{name: tf.constant(value) for name, value in batch.items()}
            ).items()
        }
        for size, batch in batches.items()
    }


def _structure_problems(
    signature: Signature, ours: Batches, theirs: Batches
) -> list[str]:
    """Problems with names, types and shapes, which make outputs incomparable."""
    declared = set(signature.outputs)
    problems = []
    for size in ours:
        for where, outputs in (("Keras", ours[size]), ("it", theirs.get(size, {}))):
            if set(outputs) != declared:
                return [
                    f"{signature.name} must return {sorted(declared)}, "
                    f"{where} returned {sorted(outputs)}"
                ]
        for name in signature.outputs:
            one, other = ours[size][name], theirs[size][name]
            if one.dtype != other.dtype or one.shape != other.shape:
                problems.append(
                    f"{signature.name} on {size} rows: {name} is "
                    f"{other.dtype} {list(other.shape)} instead of "
                    f"{one.dtype} {list(one.shape)}"
                )
            elif one.dtype.kind == "f" and np.isnan(one).any():
                problems.append(
                    f"{signature.name} on {size} rows: {name} are NaN in Keras already"
                )
            elif one.shape[:1] != (size,):
                problems.append(
                    f"{signature.name} on {size} rows: {name} has the shape "
                    f"{list(one.shape)}, not one row for each row of the inputs"
                )
    return problems
