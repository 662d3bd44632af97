"""Every check of the conformance suite on every model, and that checks can fail."""

import os
import re

import keras
import numpy as np
import pytest

import processes
from conformance import (
    CHECKS,
    TABLE,
    gradient_of_the_loss,
    largest_difference,
    mixed_bfloat16,
    rows_stand_alone,
    same_weights,
    within,
)
from conformance_processes import KINDS, Trial, row_named
from conformance_rows import COVERING_ROWS, ROWS


@pytest.fixture(scope="module")
def trial(request, tmp_path_factory, free_memory):
    """One row at a time: its models are gone before those of the next are made."""
    free_memory()
    return Trial(request.param, tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize(
    ("trial", "check"),
    [
        pytest.param(
            row,
            check,
            id=f"{row.name}-{check.name}",
            marks=[getattr(pytest.mark, check.lane)] * (row not in check.rows),
        )
        for row in ROWS
        for check in CHECKS
    ],
    indirect=["trial"],
    scope="module",  # of the trial: else each check would have its own
)
def test_promise(trial, check, record_property):
    start = cpu_seconds()
    check.function(trial)
    if trial.row in check.rows:  # conftest.py adds them up.
        record_property("row", trial.row.name)
        record_property("seconds", cpu_seconds() - start)
        record_property("covering", trial.row in COVERING_ROWS)


def cpu_seconds():
    """Of this process, and of those that it has forked for the checks."""
    return sum(os.times()[:2]) + processes.cpu_seconds


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])
def test_a_gan_on_several_devices_is_that_of_one(count, tmp_path):
    """Not bit for bit: what three sum depends on the order."""
    trial = Trial(row_named("GAN: dcgan, batch norm"), tmp_path)
    same_weights(trial.replicas(count=count), trial.one_device(count=count))


@pytest.mark.machines
def test_a_gan_of_three_workers_is_that_of_one_device(tmp_path):
    trial = Trial(row_named("GAN: dcgan, batch norm"), tmp_path)
    same_weights(trial.workers(3), trial.one_device(count=3))


def test_every_class_has_a_row_that_always_runs():
    classes = {row.make.func for row in ROWS}
    assert classes == {row.make.func for row in ROWS if not row.slow}


def test_the_costly_checks_see_every_capability():
    needed = set().union(*(row.capabilities for row in ROWS if not row.slow))
    assert set().union(*(row.capabilities for row in COVERING_ROWS)) == needed


def test_the_table_in_the_docs_has_these_lines_and_columns():
    lines = [re.split(r" *\| *", line)[1:-1] for line in TABLE.read_text().splitlines()]
    header, _, *body = [line for line in lines if line]
    assert header[2:] == [row.name for row in ROWS]
    assert [line[:2] for line in body] == [[c.promise, c.claim] for c in CHECKS]
    assert "**fails**" not in TABLE.read_text()


def test_a_difference_that_is_not_finite_is_above_every_limit():
    with pytest.raises(AssertionError, match="inf, allowed is 1"):
        within("x", largest_difference([np.array([1.0, np.nan])], [np.ones(2)]), 1.0)


def test_a_model_whose_rows_depend_on_their_batch_fails():
    class Mixing:
        conditions = ()

        def generate(self, model, rows):
            values = np.array(rows, np.float32)
            return values[:, None] + 1e-3 * len(values)

    class NothingTrained:
        row = Mixing()

        def trained(self):
            return None

    with pytest.raises(AssertionError, match="rows: 0.312"):
        rows_stand_alone(NothingTrained())


class LongerSGD(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(1.5 * gradient, variable, learning_rate)


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        ("sgd", gradient_of_the_loss, r"1 / 0\.6"),
        ("mixed_bfloat16", mixed_bfloat16, r"share of the displacement: 0\.[45]"),
    ],
    ids=["float32", "bfloat16"],
)
def test_a_gradient_that_is_half_too_long_fails(
    kind, check, message, tmp_path, monkeypatch
):
    row = row_named("VAE: mlp")
    longer = {"optimizer": lambda: LongerSGD(row.learning_rate)}
    monkeypatch.setitem(KINDS, kind, KINDS[kind] | longer)
    with pytest.raises(AssertionError, match=message):
        check(Trial(row, tmp_path))
