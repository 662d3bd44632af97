"""Which devices train, and which rows each of them gets."""

import json
import os

import tensorflow as tf

from kgen.data.pipeline import Pipeline

STRATEGIES = ("auto", "none", "mirrored", "multiworker", "tpu")


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns a distribution strategy.

    Args:
        name: "none": the first device alone. "mirrored": every GPU of this machine, or
            every logical CPU device where there is no GPU. "multiworker": one of
            several processes, as the environment variable TF_CONFIG says. "tpu": the
            TPU that TPU_NAME names. "auto": multiworker if TF_CONFIG is set, tpu if
            TPU_NAME is, mirrored if there are several GPUs, otherwise none.

    Raises:
        ValueError: If the name is unknown, or TF_CONFIG or TPU_NAME is missing or
            cannot be read.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}. "
            f"Received: strategy={name!r}"
        )
    if name == "auto" and "TF_CONFIG" in os.environ:
        name = "multiworker"
    if name == "multiworker":
        _check_tf_config()
        _keep_kernels_apart()
        # Before anything else: it refuses once the devices have been listed.
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and "TPU_NAME" in os.environ:
        name = "tpu"
    elif name == "auto":
        name = "mirrored" if len(gpus) > 1 else "none"
    if name == "tpu":
        return _tpu_strategy()
    if name == "mirrored":
        _keep_kernels_apart()
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if resolver.task_type == "worker":
        has_chief = "chief" in resolver.cluster_spec().jobs
        return resolver.task_id == 0 and not has_chief
    return resolver.task_type == "chief"


def num_processes(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    return getattr(strategy.extended, "_num_workers", 1)


def deal(strategy: tf.distribute.Strategy, pipeline: Pipeline, skip: int = 0):
    """Returns a dataset for `fit` in which each replica gets its share of a batch.

    Args:
        strategy: As returned by `make_strategy`.
        pipeline: Its batches are global: all replicas of all workers together.
        skip: Batches at the start of each pass to leave out.
    """
    if strategy.num_replicas_in_sync == 1:
        return pipeline.dataset(skip=skip)

    def worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines
        return pipeline.dataset(
            skip=skip,
            rank=context.input_pipeline_id,
            num_ranks=workers,
            replicas=context.num_replicas_in_sync // workers,
        )

    dealt = strategy.distribute_datasets_from_function(worker_dataset)
    # Keras takes the cardinality for the number of steps, but here it is what a worker
    # reads, one element for each of its replicas. Keras would take a step too many at
    # the end of each epoch: on no data, yet the counters would count it.
    dealt._cardinality = pipeline.steps_per_epoch - skip
    return dealt


def _keep_kernels_apart() -> None:
    """Makes TensorFlow run a graph's operations as written: none fused or reordered.

    A fused operation, a chain of sums in another order, a constant moved past a sum:
    each rounds differently, and TensorFlow does not change the graphs of two processes
    and of two replicas alike: they would differ in the last bits.
    """
    names = ("remapping", "arithmetic_optimization", "constant_folding")
    tf.config.optimizer.set_experimental_options(dict.fromkeys(names, False))


def _check_tf_config() -> None:
    text = os.environ.get("TF_CONFIG", "")
    way_out = (
        'Set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
        '"worker", "index": 0}} on each worker, with its own index.'
    )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"TF_CONFIG must be JSON. Received: {text!r} ({error}). {way_out}"
        ) from error
    if not isinstance(config, dict) or not {"cluster", "task"} <= config.keys():
        raise ValueError(
            f"TF_CONFIG must name a cluster and a task. Received: {text}. {way_out}"
        )


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
