"""Every check of the conformance suite on every model, and that checks can fail."""

import re

import numpy as np
import pytest

from conformance import (
    CHECKS,
    TABLE,
    largest_difference,
    part_of,
    rows_stand_alone,
    within,
)
from conformance_processes import Shared
from conformance_rows import ROWS


@pytest.fixture(scope="session")
def shared(request, tmp_path_factory):
    """Serves the rows of the tests that run, and no others."""
    tests = [t for t in request.session.items if t.originalname == "test_promise"]
    names = {test.callspec.params["row"].name for test in tests}
    rows = [row for row in ROWS if row.name in names]
    return Shared(tmp_path_factory.mktemp("conformance"), rows)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else [])
        for row in ROWS
    ],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_promise(check, row, shared):
    check.function(row, shared)


@pytest.fixture(scope="session")
def gan():
    return next(row for row in ROWS if row.name.startswith("GAN"))


def test_a_gan_on_four_devices_is_the_same_as_on_one(gan, tmp_path):
    arrays = Shared(tmp_path).train_on_devices(4, [gan])
    one, four = (
        part_of(arrays, f"{gan.name}/{name}/sgd/weights")
        for name in ("none", "mirrored")
    )
    within("weights", largest_difference(four, one), 1e-6)


def test_a_gan_of_three_workers_or_replicas_is_that_of_one_device(gan, tmp_path):
    """Not bit for bit: what three sum depends on the order."""
    shared = Shared(tmp_path)
    arrays = shared.train_on_devices(3, [gan])
    one = part_of(arrays, f"{gan.name}/none/sgd/weights")
    replicas = part_of(arrays, f"{gan.name}/mirrored/sgd/weights")
    workers = part_of(shared.train_with_workers(3, [gan]), f"{gan.name}/weights")
    within("weights of replicas", largest_difference(replicas, one), 1e-6)
    within("weights of workers", largest_difference(workers, one), 1e-6)


def test_every_class_has_a_row_that_always_runs():
    classes = {type(row.make()) for row in ROWS}
    assert classes == {type(row.make()) for row in ROWS if not row.slow}


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
        def trained(self, row):
            return None

    with pytest.raises(AssertionError, match="rows: 0.312"):
        rows_stand_alone(Mixing(), NothingTrained())
