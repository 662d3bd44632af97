"""Rates and times of calls, by a clock that the test sets."""

from kgen.evaluation import sampling_speed, timing


def test_sampling_speed_counts_calls_and_seconds(monkeypatch):
    now = [0.0]
    # The warm-up is slow; then calls take 1/16 s, and one run is slower than others.
    costs = iter([3.0] + [1 / 16] * 9 + [1 / 8] * 4 + [1 / 16] * 8)

    class SlowModel:
        num_classes = 3

        def generate(self, seeds, labels):
            assert list(labels) == [seed % 3 for seed in seeds]
            now[0] += next(costs)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    record = sampling_speed(SlowModel(), batch_size=8, seed=4)
    # 0.2 s are 4 calls of 1/16 s: 32 images in a run, 160 in five.
    assert record.value == 8 * 16
    assert record.interval == (8 * 8, 8 * 16)
    assert record.n == 160
    assert "32 images each" in record.protocol
    assert next(costs, None) is None


def test_each_call_is_timed_alone(monkeypatch):
    now = [0.0]

    def work(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = [lambda: work(1.0), lambda: work(0.25)]
    assert timing.call_seconds(calls).tolist() == [1.0, 0.25]
