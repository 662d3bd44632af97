"""The proof that an export computes what Keras computes, and what becomes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.export.image_files import TOLERANCE, share_of_pixels_off, with_image_files
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature

# One row, a few, and a whole batch (`Signature.proof_rows`): a graph that fixed its
# batch size, or broadcasts where it should not, differs on one of them.
ONE, FEW = 1, 3

# Two candidates for the next token whose scores are as near may change places.
TIED_TOKENS = 1e-4
NO_TIE = 2**62

_RUN_EXPORT = Path(__file__).with_name("run_export.py")

# Inputs or outputs by name, for each batch size.
Batches = dict[int, dict[str, np.ndarray]]


class ExportError(RuntimeError):
    """An export failed, or differs from Keras; nothing of it was kept."""


@dataclass(frozen=True)
class Verification:
    """How far one signature of an export is from Keras.

    Attributes:
        signature: Its name.
        difference: Of the output that comes closest to its tolerance, over batches of
            1, 3 and `proof_rows`. Absolute for values up to 1, such as pixels; relative
            to larger ones; of image files the share of the pixels that are off by one.
        tolerance: The largest difference that is accepted of this output.
        milliseconds: Median time of a call with one row, in the runtime on the CPU.
        notes: Where two tokens were as likely as each other, and it took the other one.
    """

    signature: str
    difference: float
    tolerance: float
    milliseconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export(os.PathLike):
    """A file or folder that was written, loaded again, and found right.

    It can be passed wherever a path is taken.

    Attributes:
        path: The ONNX file, or the folder of this version of the SavedModel.
        verifications: One for each signature it holds.
        num_bytes: Its size.
        seconds: What exporting and proving it took.
    """

    path: Path
    verifications: tuple[Verification, ...]
    num_bytes: int
    seconds: float

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        head = f"{self.path} ({self.num_bytes / 1e6:.2f} MB, {self.seconds:.1f} s)"
        lines = [
            f"  {proof.signature}: differs from Keras by at most "
            f"{proof.difference:.1e}, tolerance {proof.tolerance:.0e}; "
            f"a row takes {proof.milliseconds:.3g} ms"
            + "".join(f"\n    {note}" for note in proof.notes)
            for proof in self.verifications
        ]
        return "\n".join([head, *lines])


def signatures_for(model: GenerativeModel, runtime: str) -> list[Signature]:
    """The signatures of a model that exist in a runtime, in float32.

    Those of image files are among them; see `with_image_files`.

    Raises:
        ExportError: There are none.
    """
    signatures = with_image_files(model.float32_clone().signatures())
    chosen = [signature for signature in signatures if runtime in signature.runtimes]
    if not chosen:
        names = ", ".join(signature.name for signature in signatures)
        raise ExportError(
            f"A {runtime} export needs a signature that exists in this runtime. "
            f"Received: {type(model).__name__} with {names or 'none at all'}."
        )
    return chosen


def trace(signature: Signature) -> tf.types.experimental.PolymorphicFunction:
    """A tf.function of a signature whose inputs and outputs carry their names."""
    names = tuple(signature.inputs)
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in signature.inputs.items()
    ]

    def call(*tensors):
        return signature.function(**dict(zip(names, tensors, strict=True)))

    return tf.function(call, input_signature=specs, autograph=False)


@contextlib.contextmanager
def staged(parent: Path, name: str) -> Iterator[Path]:
    """Yields a free path beside the final one; removes what is there at the end.

    The block renames it once it has proven itself. If the block fails, folders that
    were made for it go, too.
    """
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield path
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(parent / name)  # A write that fails names no file.
        _remove(path)
        for folder in made:
            with contextlib.suppress(OSError):  # Somebody else's file lies in it.
                folder.rmdir()
        raise
    _remove(path)


def verify(
    path: Path, signatures: Sequence[Signature], runtime: str
) -> tuple[Verification, ...]:
    """Compares an export with Keras, in a process that does not import kgen.

    Both sides compute on the CPU, whatever this process trains on: the matrix products
    of a GPU are rounded more coarsely than the tolerances allow.

    Args:
        path: The export.
        signatures: What it must hold.
        runtime: "saved_model" or "onnx".

    Raises:
        ExportError: It does not load or run, differs by more than the tolerance of a
            signature, or computes a row differently in another batch.
    """
    inputs = {signature.name: _batches(signature) for signature in signatures}
    with tf.device("/CPU:0"):
        expected = {
            signature.name: _run_keras(signature, inputs[signature.name])
            for signature in signatures
        }
    received, milliseconds = _replay(path, inputs, runtime)
    problems: list[str] = []
    verifications = []
    for signature in signatures:
        ours = expected[signature.name]
        theirs = received.get(signature.name, {})
        found = _structure_problems(signature, ours, theirs)
        if not found:
            ties = _ties(signature, inputs[signature.name])
            gaps = {
                (size, name): _gap(signature, name, theirs[size], ours[size], ties)
                for size in ours
                for name in signature.outputs
            }
            found = _excesses(signature, gaps)
            found += _batch_problems(signature, theirs, ties)
            notes = _tied_rows(signature, theirs, ours, ties)
            allowed = {key: _tolerance(signature, key[1]) for key in gaps}
            worst = max(gaps, key=lambda key: gaps[key] / allowed[key])
            verifications.append(
                Verification(
                    signature.name,
                    gaps[worst],
                    allowed[worst],
                    milliseconds[signature.name],
                    notes,
                )
            )
        problems += found
    if problems:
        raise ExportError(
            f"The {runtime} export does not compute what Keras computes, and was "
            f"deleted: {'; '.join(problems)}."
        )
    return tuple(verifications)


def difference(received: np.ndarray, expected: np.ndarray) -> float:
    """The largest |received - expected| / max(1, |expected|); infinite for a NaN.

    Equal infinities (masked scores) do not differ.
    """
    received, expected = received.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(received - expected) / np.maximum(1.0, np.abs(expected))
    gaps = np.where(received == expected, 0.0, gaps)
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


def _gap(
    signature: Signature,
    name: str,
    received: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    ties: np.ndarray | None,
) -> float:
    """How far an output is off; for ids, tokens and text, 0 or infinity.

    Of image files it is the share of the pixels that are off by one.

    Where two scores are the same but for rounding, their ids may change places, and
    from the first token on that is tied with another a row may go on as it likes.
    """
    kind = signature.outputs[name]
    if ties is not None and kind in ("tokens", "text"):
        differ = _differ(kind, received[name], expected[name], ties)
        return np.inf if differ.any() else 0.0
    if ties is not None:
        untied = ties[: len(expected[name])] == NO_TIE
        return difference(received[name][untied], expected[name][untied])
    if kind in ("png", "pixels"):
        return share_of_pixels_off(received[name], expected[name])
    if kind != "items":
        return difference(received[name], expected[name])
    scores = expected["scores"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        steps = -np.diff(scores) / np.maximum(1.0, np.abs(scores[:, 1:]))
    apart = ~(steps <= 2 * signature.tolerance)  # NaN between two infinities: apart
    # The last may have been exchanged with one that is not there.
    alone = np.pad(apart, ((0, 0), (1, 0)), constant_values=True) & np.pad(
        apart, ((0, 0), (0, 1)), constant_values=False
    )
    return np.inf if (alone & (received[name] != expected[name])).any() else 0.0


def _ties(signature: Signature, batches: Batches) -> np.ndarray | None:
    """The place of the first tied token of each row, far away where there is none."""
    if signature.margins is None:
        return None
    batch = batches[signature.proof_rows]
    rows = {name: tf.constant(value) for name, value in batch.items()}
    tied = tf.function(signature.margins)(**rows).numpy() < TIED_TOKENS
    return np.where(tied.any(axis=1), tied.argmax(axis=1), NO_TIE)


def _differ(
    kind: str, received: np.ndarray, expected: np.ndarray, ties: np.ndarray
) -> np.ndarray:
    """Which rows differ before a token of theirs is tied: bool [rows].

    Of text it is not known where the token is: no tie must be in it.
    """
    differs, ties = received != expected, ties[: len(received)]
    if kind == "text":
        return differs & (ties == NO_TIE)
    return (differs & (np.arange(differs.shape[1]) < ties[:, None])).any(axis=1)


def _tied_rows(
    signature: Signature, theirs: Batches, ours: Batches, ties: np.ndarray | None
) -> tuple[str, ...]:
    """Says which rows of the largest batch went another way at a tie."""
    if ties is None:
        return ()
    size = signature.proof_rows
    differs = np.zeros(size, bool)
    written = [k for k in signature.outputs if signature.outputs[k] != "state"]
    for name in written:
        rows = theirs[size][name] != ours[size][name]
        differs |= rows.reshape(size, -1).any(axis=1)
    return tuple(
        f"row {row}: token {ties[row]} is as likely as another, within {TIED_TOKENS}"
        for row in np.flatnonzero(differs)
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _batches(signature: Signature) -> Batches:
    """The first rows, one, few and all, of the same example."""
    example = signature.example(signature.proof_rows)
    if example.keys() != signature.inputs.keys():
        raise ExportError(
            f"`example` of the signature {signature.name} must make its inputs, "
            f"{sorted(signature.inputs)}. Received: {sorted(example)}."
        )
    batches: Batches = {size: {} for size in (ONE, FEW, signature.proof_rows)}
    for name, spec in signature.inputs.items():
        # Text is stored as bytes of one length: an array of objects would be a pickle.
        value = np.asarray(example[name])
        if value.dtype.kind == "U":
            value = np.char.encode(value)
        kind = "S" if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
        value = value.astype(kind)
        has_rows = spec.shape.rank > 0 and spec.shape[0] is None
        for size, batch in batches.items():
            batch[name] = value[:size] if has_rows else value
    return batches


def _run_keras(signature: Signature, batches: Batches) -> Batches:
    return {
        size: {
            name: _plain(value.numpy())
            for name, value in signature.function(
                **{name: tf.constant(value) for name, value in batch.items()}
            ).items()
        }
        for size, batch in batches.items()
    }


def _plain(array: np.ndarray) -> np.ndarray:
    """The array as it can be stored: text as bytes of one length."""
    return array.astype(np.bytes_) if array.dtype == object else array


def _replay(
    path: Path, inputs: dict[str, Batches], runtime: str
) -> tuple[dict[str, Batches], dict[str, float]]:
    """What a process of its own computes, and how long a row takes it."""
    with tempfile.TemporaryDirectory(prefix="kgen-proof-") as folder:
        files = [os.path.join(folder, name) for name in ("inputs.npz", "outputs.npz")]
        arrays: dict[str, Any] = {
            f"{signature}/{size}/{name}": value
            for signature, batches in inputs.items()
            for size, batch in batches.items()
            for name, value in batch.items()
        }
        np.savez(files[0], **arrays)
        # -P: the folder of the script, with modules of kgen in it, is no place to
        # import from.
        result = subprocess.run(
            [sys.executable, "-P", str(_RUN_EXPORT), runtime, str(path), *files],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if result.returncode != 0:
            raise ExportError(
                f"The {runtime} export does not run in a process of its own, and was "
                f"deleted: {_last_line(result.stderr)} (exit status "
                f"{result.returncode})."
            )
        outputs: dict[str, Batches] = {}
        with np.load(files[1]) as stored:
            for key in stored.files:
                signature, size, name = key.split("/")
                batches = outputs.setdefault(signature, {})
                batches.setdefault(int(size), {})[name] = stored[key]
        lines = [line.split() for line in result.stdout.splitlines()]
        return outputs, {name: float(value) for name, value in lines}


def _last_line(text: str) -> str:
    # The last line of a traceback says what happened.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"


def _structure_problems(
    signature: Signature, ours: Batches, theirs: Batches
) -> list[str]:
    """What makes outputs incomparable: names, types and shapes."""
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
            same_type = (
                one.dtype == other.dtype or one.dtype.kind == other.dtype.kind == "S"
            )
            if not same_type or one.shape != other.shape:
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


def _excesses(signature: Signature, gaps: dict[tuple[int, str], float]) -> list[str]:
    return [
        f"{signature.name} on {size} rows: {name} differ by {gap:.3g}, "
        f"tolerance {_tolerance(signature, name):.3g}"
        for (size, name), gap in gaps.items()
        if not gap <= _tolerance(signature, name)
    ]


def _batch_problems(
    signature: Signature, theirs: Batches, ties: np.ndarray | None
) -> list[str]:
    """Rows that came out differently because other rows stood beside them."""
    problems = []
    for name in signature.outputs:
        few, all_rows = theirs[FEW], theirs[signature.proof_rows]
        many = {key: values[:FEW] for key, values in all_rows.items()}
        gap = _gap(signature, name, few, many, ties)
        if not gap <= _tolerance(signature, name):
            problems.append(
                f"{signature.name}: the first {FEW} rows of {name} change by {gap:.3g} "
                f"when {signature.proof_rows - FEW} others follow, tolerance "
                f"{_tolerance(signature, name):.3g}"
            )
    return problems


def _tolerance(signature: Signature, name: str) -> float:
    is_file = signature.outputs[name] in ("png", "pixels")
    return TOLERANCE if is_file else signature.tolerance


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
