"""Distances between sets of vectors: closed forms, SciPy, and counting one by one."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from kgen.evaluation import distances, frechet_distance, neighbour_measures

MEASURES = ("precision", "recall", "density", "coverage")


# -- Frechet ------------------------------------------------------------------


def test_frechet_distance_of_numbers_by_hand():
    # Means 1 and 6, variances 2 and 4: (6 - 1)^2 + (sqrt 4 - sqrt 2)^2.
    some, others = np.array([[0.0], [2.0]]), np.array([[4.0], [6.0], [8.0]])
    assert frechet_distance(some, others) == pytest.approx(25 + (2 - 2**0.5) ** 2)


def test_frechet_distance_of_turned_ellipses_in_closed_form():
    # With diagonal covariances it is |m|^2 + sum (s_a - s_b)^2 over standard deviations
    # s; to turn both sets together changes nothing. Rows at +-c e_i, of 6, have the
    # variance 2 c^2 / 5 along e_i.
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    widths_a, widths_b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    shift = np.array([0.0, 0.25, -1.0])
    expected = (shift**2).sum() + 2 / 5 * ((widths_a - widths_b) ** 2).sum()
    a, b = axes * widths_a @ turn, (axes * widths_b + shift) @ turn
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_distance_equals_scipys_matrix_root():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((200, 9)) @ rng.standard_normal((9, 9))
    b = rng.standard_normal((150, 9)) @ rng.standard_normal((9, 9)) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(cov_a @ cov_b)
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    as_float32 = frechet_distance(a.astype(np.float32), b.astype(np.float32))
    assert as_float32 == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_with_fewer_rows_than_numbers():
    """Singular covariances, where a general matrix root turns complex."""
    a = np.random.default_rng(2).standard_normal((4, 20))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Planes at right angles share nothing: the sum of both traces.
    some = np.concatenate([np.eye(2, 20), -np.eye(2, 20)])
    others = np.concatenate([np.eye(2, 20, k=5), -np.eye(2, 20, k=5)])
    assert frechet_distance(some, others) == pytest.approx(4 * 2 / 3)


# -- neighbours ---------------------------------------------------------------


def counted(real, generated, k):
    """The measures by their definitions: sorted distances, and balls one by one."""
    across = cdist(real, generated)
    real_radii = np.sort(cdist(real, real))[:, k]  # column 0 is the vector itself
    generated_radii = np.sort(cdist(generated, generated))[:, k]
    precision = [any(across[:, j] < real_radii) for j in range(len(generated))]
    recall = [any(across[i] < generated_radii) for i in range(len(real))]
    density = [sum(across[:, j] < real_radii) / k for j in range(len(generated))]
    coverage = [any(across[i] < real_radii[i]) for i in range(len(real))]
    return dict(zip(MEASURES, (precision, recall, density, coverage), strict=True))


def test_neighbour_measures_by_hand():
    # Balls, k = 1: real 0 and 1 reach 1, real 4 reaches 3 (1 to 7); generated 5 and 7
    # reach 2 (3 to 7 and 5 to 9), generated 20 reaches 13 (7 to 33).
    real, generated = np.array([[0.0], [1.0], [4.0]]), np.array([[5.0], [7.0], [20.0]])
    found = neighbour_measures(real, generated, num_neighbours=1)
    np.testing.assert_array_equal(found.precision, [1, 0, 0])  # 7 is on a surface
    np.testing.assert_array_equal(found.recall, [0, 0, 1])
    np.testing.assert_array_equal(found.density, [1, 0, 0])
    np.testing.assert_array_equal(found.coverage, [0, 0, 1])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_measures_equal_a_count_one_by_one(k):
    rng = np.random.default_rng(k)
    real, generated = rng.random((60, 3)), rng.random((45, 3)) * 0.8 + 0.3
    found = neighbour_measures(real, generated, num_neighbours=k)
    for name, values in counted(real, generated, k).items():
        np.testing.assert_array_equal(getattr(found, name), values)
        assert 0 < np.mean(values)


def test_blocks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    real, generated = rng.random((700, 4)), rng.random((600, 4)) + 0.2
    whole = neighbour_measures(real, generated)
    monkeypatch.setattr(distances, "_WORKING_MEMORY", 1)  # MiB: five blocks
    in_blocks = neighbour_measures(real, generated)
    for name, values in counted(real, generated, 5).items():
        np.testing.assert_array_equal(getattr(whole, name), values)
        np.testing.assert_array_equal(getattr(in_blocks, name), values)


def test_a_collapsed_generator_is_precise_and_covers_nothing():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 2))
    found = neighbour_measures(real, np.repeat(real[:1], 300, axis=0))
    assert found.precision.mean() == 1
    assert found.recall.mean() < 0.01
    assert found.coverage.mean() < 0.1


@pytest.mark.slow
def test_normal_vectors_have_the_published_values():
    """Two samples of 10,000 from N(0, I) in 1,000 dimensions, k = 5.

    The values of the reference implementation for its own draws. Each is a mean over
    10,000 rows that share their balls; other draws differ by less than 0.02.
    """
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((2, 10_000, 1000), dtype=np.float32)
    found = neighbour_measures(real, generated)
    values = [getattr(found, name).mean() for name in MEASURES]
    np.testing.assert_allclose(values, [0.4772, 0.4705, 1.0555, 0.9735], atol=0.02)


# -- wrong arguments ----------------------------------------------------------


@pytest.mark.parametrize("function", [frechet_distance, neighbour_measures])
def test_vectors_must_fit(function):
    rows = np.random.default_rng(0).random((10, 3))
    with pytest.raises(ValueError, match=r"one length.*\(10, 3\) and \(10, 2\)"):
        function(rows, rows[:, :2])
    with pytest.raises(ValueError, match="at least"):
        function(rows, rows[:1])
    with pytest.raises(ValueError, match="finite"):
        function(rows, rows * np.nan)


def test_fewer_rows_than_neighbours_are_refused():
    rows = np.random.default_rng(0).random((5, 3))
    with pytest.raises(ValueError, match=r"at least 6 rows.*\(5, 3\)"):
        neighbour_measures(rows, rows)
    with pytest.raises(ValueError, match="`num_neighbours` must be at least 1"):
        neighbour_measures(rows, rows, num_neighbours=0)
