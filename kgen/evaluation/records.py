"""Results: a number with all that is needed to read it, compare it and repeat it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table

from kgen.files import replacing

# The 2.5 % and 97.5 % points of 1,000 draws are known to about a tenth of the
# interval's width, and 1,000 resamples of 10,000 images take a fifth of a second.
NUM_RESAMPLES = 1000
BOOTSTRAP_TEXT = f"95 % bootstrap interval over rows, {NUM_RESAMPLES:,} resamples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number.

    Attributes:
        metric: Its name, with what changes its meaning in brackets: "nll[is-5000]".
        value: The number.
        unit: Of the number, of the interval and of the baseline.
        protocol: Data, split, what was done and how often, and what the interval is.
        n: How many images (or other rows) it was measured on.
        seed: Of all that was drawn at random.
        higher_is_better: Which way is up.
        interval: Where the number could as well have been: (low, high).
        baseline: Name and value of a trivial solution under the same protocol.
        subject: What was measured, where it is not the model but stands beside it.
    """

    metric: str
    value: float
    unit: str
    protocol: str
    n: int
    seed: int | None = None
    higher_is_better: bool
    interval: tuple[float, float] | None = None
    baseline: tuple[str, float] | None = None
    subject: str = ""

    @classmethod
    def of_mean(cls, values: np.ndarray, *, protocol: str, **fields: Any) -> Record:
        """Returns the record of a mean over rows, with its bootstrap interval.

        Args:
            values: One number for each row: [n].
            protocol: What `protocol` says, less the interval.
            **fields: The other attributes; `seed` is that of the interval, too.
        """
        return cls(
            value=float(np.mean(values, dtype=np.float64)),
            n=len(values),
            interval=bootstrap_interval(values, seed=fields.get("seed") or 0),
            protocol=f"{protocol}; mean; {BOOTSTRAP_TEXT}",
            **fields,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; NaN and infinity, which it lacks, as text."""
        return _map_floats(dataclasses.asdict(self), _to_json)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Returns the record that `to_dict` was called on."""
        values = dict(values)
        values["value"] = float(values["value"])
        if values["interval"] is not None:
            low, high = values["interval"]
            values["interval"] = (float(low), float(high))
        if values["baseline"] is not None:
            name, value = values["baseline"]
            values["baseline"] = (name, float(value))
        return cls(**values)


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """The middle 95 % of the means of resampled rows.

    Args:
        values: One number for each row: [n], n at least 1.
        seed: Keys the resampling.
        num_resamples: How often n rows are drawn with replacement.

    Returns:
        (low, high); equal for a single row, about which it knows nothing.

    Reference:
        Efron, 1979, the percentile method.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(
            "`values` must be one number for each row, and at least one. Received: "
            f"shape={values.shape}"
        )
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [
        values[generator.integers(0, count, count)].mean() for _ in range(num_resamples)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Writes records as a JSON list; the file is the old one or the new one."""
    text = json.dumps(
        [record.to_dict() for record in records], indent=2, allow_nan=False
    )
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Reads what `write_records` wrote."""
    with open(path, encoding="utf-8") as file:
        return [Record.from_dict(values) for values in json.load(file)]


def table(records: Iterable[Record]) -> str:
    """Lays out records as text: a table, and below it the protocol of each.

    Records of other subjects than the model come in a second table, beside the model's:
    a row for each subject, and a star at what is better than the baseline.
    """
    others = [record for record in records if record.subject]
    records = [record for record in records if not record.subject]
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for name in ("metric", "", "value", "interval", "unit", "n", "baseline"):
        numeric = name in ("value", "n")
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for record in records:
        grid.add_row(
            record.metric,
            "up" if record.higher_is_better else "down",
            _number(record.value),
            _interval(record.interval),
            record.unit,
            f"{record.n:,}",
            "" if record.baseline is None else _baseline(*record.baseline),
        )
    lines = _lines(grid)
    if others:
        lines += ["", *_lines(_side_by_side(records, others))]
        lines += ["* better than the baseline in the table above"]
    lines += ["", *(f"{record.metric}: {record.protocol}" for record in records)]
    return "\n".join(lines)


def _side_by_side(records: list[Record], others: list[Record]) -> rich.table.Table:
    """A row for the model and each other subject, a column for each shared metric."""
    metrics = list(dict.fromkeys(record.metric for record in others))
    cells = {(record.subject, record.metric): record for record in records + others}
    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for metric in metrics:
        grid.add_column(metric, justify="right", no_wrap=True)
    for subject in dict.fromkeys(subject for subject, _ in cells):
        row = (cells.get((subject, metric)) for metric in metrics)
        grid.add_row(
            subject or "the model",
            *("" if record is None else _starred(record) for record in row),
        )
    return grid


def _starred(record: Record) -> str:
    if record.baseline is None:
        return f"{_number(record.value)} "
    gain = record.value - record.baseline[1]
    better = gain > 0 if record.higher_is_better else gain < 0
    return _number(record.value) + ("*" if better else " ")


def _lines(grid: rich.table.Table) -> list[str]:
    # Wide enough never to cut a row; markup off, or "nll[is-5000]" loses its bracket.
    console = rich.console.Console(
        file=io.StringIO(), width=250, markup=False, highlight=False, color_system=None
    )
    console.print(grid)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [line.rstrip() for line in lines if line.strip()]


def _number(value: float) -> str:
    """Four significant digits, and all digits before the point."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    return f"{_number(interval[0])} to {_number(interval[1])}"


def _baseline(name: str, value: float) -> str:
    return f"{_number(value)} ({name})"


def _map_floats(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map_floats(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_floats(item, function) for item in value]
    return function(value) if isinstance(value, float) else value


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
