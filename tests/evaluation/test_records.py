"""Records: bootstrap intervals, files and tables."""

import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest

from kgen.evaluation import (
    Record,
    bootstrap_interval,
    protocols,
    read_records,
    table,
    write_records,
)

NLL = Record(
    metric="nll[is-5000]",
    value=85.25,
    unit="nats/image",
    protocol="made up",
    n=10_000,
    seed=0,
    higher_is_better=False,
    interval=(84.5, 86.0),
    baseline=("independent pixels", 206.75),
)
SPEED = Record(
    metric="sampling_speed",
    value=12_345.6,
    unit="images/s",
    protocol="made up, too",
    n=5,
    higher_is_better=True,
)


def test_bootstrap_covers_a_known_mean_at_its_level():
    # 300 samples of 60 from N(3, 2^2). The percentile interval of a normal mean covers
    # a little less than its 95 %: about 94 % at n = 60. The standard deviation of the
    # observed share is sqrt(.94 * .06 / 300) = 1.4 %; the bounds are 3 of them away.
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(300):
        values = rng.normal(3.0, 2.0, 60)
        low, high = bootstrap_interval(values, seed=seed, num_resamples=200)
        hits += low < 3.0 < high
    assert 0.90 < hits / 300 < 0.98


def test_bootstrap_width_follows_the_standard_error():
    values = np.random.default_rng(2).normal(0.0, 1.0, 2000)
    low, high = bootstrap_interval(values)
    standard_error = values.std() / math.sqrt(2000)
    assert (high - low) == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert low < values.mean() < high


def test_bootstrap_repeats_for_a_seed_and_is_a_point_for_one_row():
    values = np.arange(10.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval(np.array([7.0])) == (7.0, 7.0)
    with pytest.raises(ValueError, match=r"at least one. Received: shape=\(0,\)"):
        bootstrap_interval(np.array([]))


def test_record_of_a_mean_states_n_and_the_kind_of_interval():
    record = Record.of_mean(
        np.array([1.0, 2.0, 6.0], np.float32),
        metric="made_up",
        unit="dB",
        protocol="three rows",
        seed=0,
        higher_is_better=True,
    )
    assert (record.value, record.n) == (3.0, 3)
    assert record.interval[0] < 3.0 < record.interval[1]
    assert "three rows; mean; 95 % bootstrap" in record.protocol


def test_records_are_restored_from_json(tmp_path):
    endless = dataclasses.replace(SPEED, value=math.inf, interval=(1.5, math.inf))
    records = [NLL, SPEED, endless]
    write_records(tmp_path / "metrics.json", records)
    assert read_records(tmp_path / "metrics.json") == records


def test_non_finite_numbers_are_text_in_json(tmp_path):
    def refuse(name):
        raise AssertionError(name)

    write_records(tmp_path / "metrics.json", [dataclasses.replace(NLL, value=math.nan)])
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse)[0]["value"] == "nan"


def test_a_full_disk_leaves_the_old_records(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "metrics.json"
    write_records(path, [SPEED])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_records(path, [NLL, NLL])
    assert read_records(path) == [SPEED]
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_table_has_a_row_for_each_record():
    # The farther end of 84.5 to 86 is 0.75 from 85.25, which is below its baseline.
    assert table([NLL, SPEED]).splitlines() == [
        "metric                      value     +-  baseline       n",
        "nll[is-5000] (nats/image)   85.25*  0.75     206.8  10,000",
        "sampling_speed (images/s)  12,346                        5",
        "",
        "* better than the baseline",
        "baseline: independent pixels",
    ]


def test_table_names_each_baseline_once():
    better = dataclasses.replace(NLL, metric="b", baseline=("zeros", 1.0))
    lines = table([NLL, better, dataclasses.replace(NLL, metric="c")]).splitlines()
    assert lines[-2:] == [
        "baseline of nll, c: independent pixels",
        "baseline of b: zeros",
    ]


def test_protocols_are_a_paragraph_each_within_80_columns():
    long = dataclasses.replace(NLL, protocol="long " * 40)
    lines = protocols([SPEED, long]).splitlines()
    assert lines[0] == "sampling_speed (higher is better): made up, too"
    assert lines[1].startswith("nll[is-5000] (lower is better): long long")
    assert lines[2].startswith("  long")
    assert max(map(len, lines)) <= 80


def test_other_subjects_have_columns_in_a_table_of_their_own():
    def recall(value, **fields):
        return Record(
            metric="recall@20",
            value=value,
            unit="",
            protocol="made up",
            n=9,
            higher_is_better=True,
            baseline=("EASE (l2 5)", 0.5),
            **fields,
        )

    others = [recall(0.4, subject="popularity"), recall(0.5, subject="EASE (l2 5)")]
    records = [recall(0.6), *others, NLL]
    assert table(records).splitlines()[-4:] == [
        "metric     model   popularity   EASE",
        "recall@20    0.6*         0.4    0.5",
        "",
        "EASE (l2 5)",
    ]
    assert protocols(records).count("recall@20") == 1
