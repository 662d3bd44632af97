"""Learning rate schedules: values at the ends and in the middle."""

import numpy as np
import pytest

from kgen.nn import gradients


@pytest.mark.parametrize(
    ("step", "value"),
    # 10 steps up; the 40 after them are half a cosine, (1 + cos(pi t)) / 2:
    # a quarter of the way it is (1 + sqrt(1/2)) / 2, half of the way 1/2.
    [
        (0, 0.0),
        (5, 0.5),
        (10, 1.0),
        (20, (1 + np.sqrt(0.5)) / 2),
        (30, 0.5),
        (50, 0.0),
        (60, 0.0),
    ],
)
def test_a_learning_rate_warms_up_and_follows_a_cosine(step, value):
    schedule = gradients.warmup_cosine(0.2, total_steps=50, warmup_steps=10)
    np.testing.assert_allclose(float(schedule(step)), 0.2 * value, atol=1e-7)


@pytest.mark.parametrize(("step", "value"), [(0, 1.0), (25, 0.5), (50, 0.0)])
def test_without_warmup_a_learning_rate_starts_at_its_peak(step, value):
    schedule = gradients.warmup_cosine(0.2, total_steps=50)
    np.testing.assert_allclose(float(schedule(step)), 0.2 * value, atol=1e-7)


@pytest.mark.parametrize("total_steps", [0, 3])
def test_a_run_shorter_than_its_warmup_still_has_a_learning_rate(total_steps):
    schedule = gradients.warmup_cosine(0.2, total_steps, warmup_steps=4)
    np.testing.assert_allclose(float(schedule(2)), 0.1, rtol=1e-6)
