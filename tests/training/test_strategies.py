"""Which strategy the names and the environment choose, and how wrong ones are told."""

import json

import pytest
import tensorflow as tf

from kgen.training import deal, make_strategy
from kgen.training.strategies import is_chief, num_processes


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)


@pytest.mark.parametrize("name", ["auto", "none"])
def test_one_cpu_is_trained_on_without_a_strategy(name):
    strategy = make_strategy(name)
    assert strategy is tf.distribute.get_strategy()
    assert not strategy.extended._in_multi_worker_mode()
    assert (is_chief(strategy), num_processes(strategy)) == (True, 1)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="auto, none, .*Received: strategy='gpu'"):
        make_strategy("gpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "must be JSON. Received: ''"),
        ("{cluster", "must be JSON. Received: '{cluster'"),
        ("[1, 2]", r"must name a cluster and a task. Received: \[1, 2\]"),
        (
            json.dumps({"cluster": {"worker": ["localhost:1"]}}),
            "must name a cluster and a task",
        ),
    ],
)
def test_an_unreadable_tf_config_is_shown_with_a_right_one(
    monkeypatch, config, message
):
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message) as caught:
        make_strategy("multiworker")
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


def test_tf_config_makes_auto_a_multiworker(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "no JSON")
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON"):
        make_strategy("auto")


def test_tpu_needs_a_name():
    with pytest.raises(ValueError, match="needs .* TPU_NAME. Received: none. Set it"):
        make_strategy("tpu")


@pytest.mark.parametrize(
    ("jobs", "task", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 0), True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("worker", 0), False),
    ],
)
def test_one_process_is_the_chief(jobs, task, chief):
    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(jobs), task_type=task[0], task_id=task[1]
        )

    assert is_chief(Strategy()) is chief


def test_one_device_reads_the_pipeline_as_it_is():
    class Pipeline:
        def dataset(self, skip):
            return tf.data.Dataset.range(skip, 5)

    batches = deal(make_strategy("none"), Pipeline(), skip=2)
    assert [int(value) for value in batches] == [2, 3, 4]
