"""Records of results: a number with its protocol, interval and baseline."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kgen.files import write_text

# The 2.5 % and 97.5 % quantiles of 1,000 resamples are exact to about a tenth of the
# interval's width; 1,000 resamples of 10,000 images take a fifth of a second.
NUM_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number.

    Attributes:
        metric: Its name, with variants in brackets: "nll[is-5000]".
        value: The number.
        unit: Of the number, of the interval and of the baseline.
        protocol: Data, split, procedure, repetitions, and kind of the interval.
        n: Number of images (or other rows) of the measurement.
        seed: Of all random numbers.
        higher_is_better: Whether a larger number is better.
        interval: Uncertainty of the number: (low, high).
        baseline: Name and value of a trivial solution under the same protocol.
        subject: Name of a solution other than the model; empty: the model.
        headline: Whether it belongs in a short summary, as `kgen fit` prints.
    """

    metric: str
    value: float
    unit: str = ""
    protocol: str
    n: int
    seed: int | None = None
    higher_is_better: bool
    interval: tuple[float, float] | None = None
    baseline: tuple[str, float] | None = None
    subject: str = ""
    headline: bool = False

    @classmethod
    def of_mean(
        cls,
        values: np.ndarray,
        counts: np.ndarray | None = None,
        *,
        rows: str = "rows",
        protocol: str,
        **fields: Any,
    ) -> Record:
        """Return the record of a mean, with its bootstrap interval over rows.

        Args:
            values: One number for each row: [rows]; with `counts`, a sum over its
                elements.
            counts: Number of elements of each row, over which the mean is taken:
                [rows]. None: one each.
            rows: Name of the rows.
            protocol: The protocol without the interval.
            **fields: The other attributes; `seed` is also the seed of the interval.
        """
        counts = np.ones(len(values)) if counts is None else counts
        return cls(
            value=float(np.sum(values, dtype=np.float64) / counts.sum()),
            n=int(counts.sum()),
            interval=bootstrap_interval(
                values / counts.mean(), seed=fields.get("seed") or 0
            ),
            protocol=f"{protocol}; mean; 95 % bootstrap interval over {rows}, "
            f"{NUM_RESAMPLES:,} resamples",
            **fields,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN and infinity, which it lacks, as text."""
        text = json.dumps(dataclasses.asdict(self))
        return json.loads(text, parse_constant=lambda name: str(float(name)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Return the record of the values of `to_dict`."""
        interval, baseline = values["interval"], values["baseline"]
        numbers = {
            "value": float(values["value"]),
            "interval": interval and tuple(map(float, interval)),
            "baseline": baseline and (baseline[0], float(baseline[1])),
        }
        return cls(**values | numbers)


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean.

    Args:
        values: One number for each row: [n], n at least 1.
        seed: Of the resampling.
        num_resamples: Samples of n rows with replacement.

    Returns:
        (low, high); equal for a single row.

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
    means = [generator.choice(values, count).mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write records as a JSON list, atomically."""
    values = [record.to_dict() for record in records]
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the file of `write_records`."""
    with open(path, encoding="utf-8") as file:
        return [Record.from_dict(values) for values in json.load(file)]


def table(records: Iterable[Record]) -> str:
    """Lay out records in 80 columns, a row each; a star: better than the baseline.

    Records of other subjects than the model come in a second table, beside the model's.
    The interval is shown by the distance from the value to its farther end; `protocols`
    and the file of `write_records` have the rest.
    """
    records = list(records)
    ours = [record for record in records if not record.subject]
    rows = [("metric", "value ", "+-", "baseline", "n")]
    rows += [
        (
            record.metric + (f" ({record.unit})" if record.unit else ""),
            _starred(record),
            _half_width(record),
            "" if record.baseline is None else _number(record.baseline[1]),
            f"{record.n:,}",
        )
        for record in ours
    ]
    lines = _aligned(rows)
    metrics: dict[str, dict[str, None]] = {}
    for record in ours:
        if record.baseline is not None:
            short = record.metric.partition("[")[0]
            metrics.setdefault(record.baseline[0], {})[short] = None
    if metrics:
        lines += ["", "* better than the baseline"]
    for name, of in metrics.items():
        of_some = f" of {', '.join(of)}" if len(metrics) > 1 else ""
        lines += _wrapped(f"baseline{of_some}: {name}")
    if len(ours) < len(records):
        lines += ["", *_side_by_side(records)]
    return "\n".join(lines)


def protocols(records: Iterable[Record]) -> str:
    """Return a paragraph for each record of the model: how it was measured."""
    lines = []
    for record in records:
        if not record.subject:
            better = "higher" if record.higher_is_better else "lower"
            text = f"{record.metric} ({better} is better): {record.protocol}"
            lines += _wrapped(text)
    return "\n".join(lines)


def _side_by_side(records: list[Record]) -> list[str]:
    """A row for each metric that others have, a column for each subject."""
    cells = {(record.metric, record.subject): _starred(record) for record in records}
    subjects = list(dict.fromkeys(subject for _, subject in cells))
    metrics = dict.fromkeys(record.metric for record in records if record.subject)
    # "EASE (L2 300)": the options stand below the table.
    names = [subject.split(" (")[0] or "model" for subject in subjects]
    rows = [("metric", *(f"{name} " for name in names))]
    rows += [
        (metric, *(cells.get((metric, subject), "") for subject in subjects))
        for metric in metrics
    ]
    detailed = [subject for subject in subjects if " (" in subject]
    return _aligned(rows) + ([""] + detailed if detailed else [])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, numbers to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = f"{{:<{first}}}" + "".join(f"  {{:>{width}}}" for width in others)
    return [line.format(*row).rstrip() for row in rows]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent="  ", break_long_words=False)


def _starred(record: Record) -> str:
    """The value, and a star or a space."""
    better = False
    if record.baseline is not None:
        gain = record.value - record.baseline[1]
        better = gain > 0 if record.higher_is_better else gain < 0
    return _number(record.value) + ("*" if better else " ")


def _half_width(record: Record) -> str:
    if record.interval is None:
        return ""
    low, high = record.interval
    return _number(max(record.value - low, high - record.value), digits=2)


def _number(value: float, digits: int = 4) -> str:
    """Format with so many significant digits, and all digits before the point."""
    if not math.isfinite(value):
        return str(value)
    whole = abs(value) >= 10 ** (digits - 1)
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"
