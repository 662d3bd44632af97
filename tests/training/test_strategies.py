"""Strategies chosen by name and environment, shares of rows, and checks of workers."""

import functools
import json
import types

import pytest
import tensorflow as tf

from kgen.data.pipeline import Pipeline
from kgen.models import VAE
from kgen.training import (
    barrier,
    check_equal,
    distribute,
    make_strategy,
    strategies,
    unoptimized_graphs,
)
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


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_an_unreadable_tf_config_is_shown_with_a_right_one(monkeypatch, name):
    monkeypatch.setenv("TF_CONFIG", "no JSON")
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON") as caught:
        make_strategy(name)
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


def test_multiworker_needs_tf_config():
    with pytest.raises(ValueError, match="Received: ''. Set it to .*, do without it."):
        make_strategy("multiworker")


def tf_config(cluster, kind, index):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_process_that_does_not_join_the_others_is_alone(name, monkeypatch):
    workers = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv("TF_CONFIG", tf_config(workers, "worker", 0))
    lines: list[str] = []
    strategy = make_strategy(name, join=False, report=lines.append)
    assert strategy is tf.distribute.get_strategy()
    assert lines == ["This is the plan of one of 2 processes."]


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_cluster_of_one_is_a_single_machine(monkeypatch, name):
    """The form of AI Platform for one machine; no port is opened."""
    monkeypatch.setenv("TF_CONFIG", tf_config({"chief": ["a:1"]}, "chief", 0))
    assert make_strategy(name) is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("kind", "index", "chief"), [("master", "0", True), ("worker", "1", False)]
)
def test_tensorflow_receives_a_chief_for_a_master(monkeypatch, kind, index, chief):
    """It does not accept "master": `id_in_cluster` raises."""
    calls = []
    monkeypatch.setattr(
        strategies, "wait_for_cluster", lambda *arguments: calls.append(arguments)
    )

    class MultiWorker:
        def __init__(self, resolver):
            # The order matters: no device may have been used when this is made.
            assert len(calls) == 1
            self.cluster_resolver = resolver

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", MultiWorker)
    cluster = {"master": ["m:1"], "worker": ["a:1", "b:1"]}
    monkeypatch.setenv("TF_CONFIG", tf_config(cluster, kind, index))
    strategy = make_strategy("auto", worker_timeout=7)
    resolver = strategy.cluster_resolver
    jobs = {"chief": ["m:1"], "worker": ["a:1", "b:1"]}
    assert resolver.cluster_spec().as_dict() == jobs
    assert (resolver.task_type, resolver.task_id) == (
        "chief" if chief else "worker",
        int(index),
    )
    assert is_chief(strategy) is chief
    assert calls[0][0].jobs == jobs
    assert calls[0][1] == 7


def test_tpu_needs_a_name():
    with pytest.raises(ValueError, match="needs .* TPU_NAME. Received: none. Set it"):
        make_strategy("tpu")


@pytest.mark.parametrize("name", ["auto", "tpu"])
def test_a_tpu_is_connected_and_initialised_before_its_strategy_is_made(
    monkeypatch, name
):
    """With stubs, for want of a TPU."""
    calls = []

    def record(what, result=None):
        def call(*arguments):
            calls.append((what, *arguments))
            return result

        return call

    class Strategy:
        num_replicas_in_sync = 8
        extended = object()
        cluster_resolver = types.SimpleNamespace(task_type=None)

    made = Strategy()
    monkeypatch.setenv("TPU_NAME", "local")
    patches = {
        "distribute.cluster_resolver.TPUClusterResolver": record("resolve", "resolver"),
        "config.experimental_connect_to_cluster": record("connect"),
        "tpu.experimental.initialize_tpu_system": record("initialise"),
        "distribute.TPUStrategy": record("make", made),
    }
    for place, stand_in in patches.items():
        holder, _, attribute = place.rpartition(".")
        monkeypatch.setattr(
            functools.reduce(getattr, holder.split("."), tf), attribute, stand_in
        )
    assert make_strategy(name) is made
    assert calls == [
        ("resolve", "local"),
        ("connect", "resolver"),
        ("initialise", "resolver"),
        ("make", "resolver"),
    ]
    assert (is_chief(made), num_processes(made)) == (True, 1)


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

    batches = distribute(make_strategy("none"), Pipeline(), skip=2)
    assert [int(value) for value in batches] == [2, 3, 4]


class Workers:
    """Stands for the strategy of one of several processes."""

    def __init__(self, rank, num_workers, local_replicas):
        self.num_replicas_in_sync = num_workers * local_replicas
        self.context = tf.distribute.InputContext(
            num_workers, rank, self.num_replicas_in_sync
        )

    def distribute_datasets_from_function(self, function):
        class Dealt:
            elements = [batch["rows"].numpy() for batch in function(self.context)]

        return Dealt()


@pytest.mark.parametrize("local_replicas", [1, 2])
@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_every_row_is_seen_once_an_epoch(num_workers, local_replicas, drop_remainder):
    """47 rows in batches of 12; of the rest, 11, some replicas get a row fewer."""
    seen, steps = [], set()
    for rank in range(num_workers):
        pipeline = Pipeline(
            47,
            lambda rows, epoch, places: {"rows": rows},
            batch_size=12,
            seed=5,
            shuffle=True,
            drop_remainder=drop_remainder,
        )
        dealt = distribute(Workers(rank, num_workers, local_replicas), pipeline)
        seen += [row for element in dealt.elements for row in element]
        steps.add(dealt._cardinality)
    assert steps == {3 if drop_remainder else 4}
    assert len(seen) == len({*seen}) == (36 if drop_remainder else 47)


def test_workers_that_differ_are_refused_together(monkeypatch):
    """All raise the same error: a restart of one alone would not help."""
    monkeypatch.setattr(strategies, "barrier", lambda strategy, value: [value, 0])
    with pytest.raises(ValueError, match=r"The rule. .*\(chief first\): 88, 0. Do so."):
        check_equal(None, 88, "The rule", "Do so.")
    check_equal(None, 0, "The rule", "Do so.")


def test_graphs_are_optimized_as_before_once_the_block_ends():
    """A library call must not slow down all that its process computes later."""
    options = tf.config.optimizer.get_experimental_options
    before = options()
    make_strategy("mirrored")
    assert options() == before
    with unoptimized_graphs():
        assert not any(options()[name] for name in ("remapping", "constant_folding"))
    after = options()
    assert all(after.pop(name) for name in [*after] if name not in before)
    assert after == before


def test_a_single_process_does_not_wait():
    assert barrier(make_strategy("none"), 7) == [7]


def test_a_strategy_takes_one_step_a_call():
    """Several steps fail in Keras with several replicas, for every model."""
    vae = VAE(image_shape=(2, 2, 1), latent_dim=1, hidden_units=(2,))
    vae.compile(steps_per_execution=4)
    assert vae.steps_per_execution == 4
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        vae = VAE(image_shape=(2, 2, 1), latent_dim=1, hidden_units=(2,))
        vae.compile(steps_per_execution=4)
    assert vae.steps_per_execution == 1
