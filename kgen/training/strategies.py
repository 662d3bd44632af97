"""Devices to train on, the rows of each replica, and barriers between processes."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

from kgen.data.pipeline import Pipeline
from kgen.training.clusters import Cluster, read_cluster, wait_for_cluster

STRATEGIES = ("auto", "none", "mirrored", "multiworker", "tpu")


def make_strategy(
    name: str = "auto",
    *,
    worker_timeout: float = 600.0,
    join: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> tf.distribute.Strategy:
    """Returns a distribution strategy.

    Args:
        name: "none": the first device alone. "mirrored": every GPU of this machine, or
            every logical CPU device where there is no GPU. "multiworker": one of
            several processes, configured by the environment variable TF_CONFIG. "tpu":
            the TPU that TPU_NAME names. "auto": multiworker if TF_CONFIG is set, tpu if
            TPU_NAME is, mirrored if there are several GPUs, otherwise none.
        worker_timeout: Seconds to wait for the other processes to start.
        join: Whether to train with the other processes. If not, TF_CONFIG is read, and
            the strategy is that of this process alone.
        report: Called with a line while it waits for them, or if it does not join.

    Raises:
        ValueError: If the name is unknown, or TF_CONFIG or TPU_NAME is missing or
            cannot be read.
        OSError: If the port that TF_CONFIG gives this process is taken.
        TimeoutError: If a process of the cluster does not start in time.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}. "
            f"Received: strategy={name!r}"
        )
    if name == "auto" and os.environ.get("TF_CONFIG"):
        name = "multiworker"
    if name == "multiworker":
        cluster = read_cluster(os.environ.get("TF_CONFIG", ""))
        if len(cluster.addresses) > 1 and not join:
            report(f"This is the plan of one of {len(cluster.addresses)} processes.")
        elif len(cluster.addresses) > 1:
            wait_for_cluster(cluster, worker_timeout, report)
            return _multi_worker_strategy(cluster)
        name = "auto"  # A single machine, as is a cluster of one.
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and "TPU_NAME" in os.environ:
        name = "tpu"
    elif name == "auto":
        name = "mirrored" if len(gpus) > 1 else "none"
    if name == "tpu":
        return _tpu_strategy()
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


@contextlib.contextmanager
def unoptimized_graphs() -> Iterator[None]:
    """Run graphs as written within the block: no operations fused or reordered.

    A fused operation, a chain of sums in another order, a constant moved past a sum:
    each rounds differently, and TensorFlow does not optimize the graphs of two worker
    processes and of two replicas alike, so that they would differ in the last bits.
    """
    names = ("remapping", "arithmetic_optimization", "constant_folding")
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options(dict.fromkeys(names, False))
    try:
        yield
    finally:
        # An option that was never set is on.
        restored = {name: before.get(name, True) for name in names}
        tf.config.optimizer.set_experimental_options(restored)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the chief, which writes the files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if resolver.task_type == "worker":
        has_chief = "chief" in resolver.cluster_spec().jobs
        return resolver.task_id == 0 and not has_chief
    return resolver.task_type == "chief"


def num_processes(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that train together."""
    return getattr(strategy.extended, "_num_workers", 1)


def barrier(strategy: tf.distribute.Strategy, value: int = 0) -> list[int]:
    """Waits until every process calls this; returns their values, the chief's first.

    Args:
        strategy: As returned by `make_strategy`.
        value: An integer of 64 bits for the other processes.
    """
    if num_processes(strategy) == 1:
        return [value]

    num_replicas = strategy.num_replicas_in_sync

    def sum_at_places():  # each replica adds its value at its own place
        context = tf.distribute.get_replica_context()
        at = tf.range(num_replicas) == context.replica_id_in_sync_group
        own = tf.where(at, tf.constant(value, tf.int64), 0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    results = tf.function(strategy.run)(sum_at_places)
    [given, *_] = strategy.experimental_local_results(results)
    return given.numpy().tolist()[:: num_replicas // num_processes(strategy)]


def check_equal(
    strategy: tf.distribute.Strategy, value: int, rule: str, way_out: str
) -> None:
    """Checks that all processes give the same value.

    Raises:
        ValueError: In every process, if they do not, with the rule and the way out.
    """
    values = barrier(strategy, value)
    if len({*values}) > 1:
        received = ", ".join(map(str, values))
        raise ValueError(f"{rule}. Received (chief first): {received}. {way_out}")


def distribute(
    strategy: tf.distribute.Strategy,
    pipeline: Pipeline,
    skip: int = 0,
    check: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda dataset: dataset,
):
    """Returns a dataset for `fit` in which each replica gets its share of a batch.

    Args:
        strategy: As returned by `make_strategy`.
        pipeline: Its batches are global: all replicas of all workers together.
        skip: Batches at the start of each pass to leave out.
        check: Adds the checks of batches to a dataset that several replicas read: `fit`
            cannot add them to a distributed one.
    """
    if strategy.num_replicas_in_sync == 1:
        return pipeline.dataset(skip=skip)

    def worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines
        dataset = pipeline.dataset(
            skip=skip,
            rank=context.input_pipeline_id,
            num_ranks=workers,
            replicas=context.num_replicas_in_sync // workers,
        )
        return check(dataset)

    distributed = strategy.distribute_datasets_from_function(worker_dataset)
    # Keras takes the cardinality for the number of steps, but here it is the number of
    # elements of a worker, one for each of its replicas. Keras would take a step too
    # many at the end of each epoch: on no data, yet the counters would count it.
    distributed._cardinality = pipeline.steps_per_epoch - skip
    distributed.is_checked = True
    return distributed


def _multi_worker_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    on_terminate = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs),
        task_type=cluster.task_type,
        task_id=cluster.task_index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    # Before anything else: it refuses once the devices have been listed.
    strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    # Kubernetes ends a pod with SIGTERM, which TensorFlow catches and ignores.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    return strategy


def _tpu_strategy() -> tf.distribute.Strategy:
    if "TPU_NAME" not in os.environ:
        raise ValueError(
            'strategy="tpu" needs the environment variable TPU_NAME. Received: none. '
            'Set it to the name of the TPU, or to "local" on a TPU VM.'
        )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ["TPU_NAME"])
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)
