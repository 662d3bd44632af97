"""The one class between `keras.Model` and every model of kgen."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared.signatures import Signature
from kgen.nn import gradients, random
from kgen.nn.image_networks import make_inputs


class GenerativeModel(keras.Model):
    """What every model of kgen shares: its step, its noise, its metrics.

    A subclass defines `train_step`, `test_step` and `signatures`, keeps each argument
    of its constructor under its own name, and adds one metric for each key of its logs
    with `add_log_metrics`.

    Attributes:
        batch_names: Standard names of what a batch holds: what it must, what it may.
        compatibility_arguments: Arguments that must be equal for weights to be
            transferable, such as the vocabulary or the item ids.
    """

    batch_names: tuple[str, str] = ("images", "labels")
    compatibility_arguments: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Schedules and noise are functions of this counter and of nothing else: it is
        # saved with the model, so a resumed run goes on where it was.
        self.step = self.add_counter("step")
        self.seed = 0
        # Arguments that are Keras layers of the user's, by name; None for the default.
        self.own_networks: dict[str, keras.layers.Layer | None] = {}
        self.log_metrics: dict[str, keras.metrics.Metric] = {}
        self._non_finite: dict[str, keras.metrics.Metric] = {}
        self._graphs: dict[str, Any] = {}
        self._optimizers: dict[str, keras.optimizers.Optimizer] = {}

    def add_counter(self, name: str) -> keras.Variable:
        """Adds a whole number that is saved with the model, 0 at first."""
        return self.add_weight(
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        *,
        seed: int = 0,
        gradient_clip_norm: float | None = None,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        run_eagerly: bool = False,
    ) -> None:
        """Prepares the model for `fit`. The losses are the model's own.

        Args:
            optimizer: A Keras optimizer or its name; built here, on the spot. Under
                `mixed_float16` it is wrapped in a `LossScaleOptimizer`.
            seed: Non-negative integer; all training noise follows from it.
            gradient_clip_norm: Largest norm of the whole gradient, or None.
            steps_per_execution: Steps in one call of the compiled function. 32 or more
                makes small models markedly faster; logs are seen that much less often.
                Under a distribution strategy it is 1: Keras fails with more there.
            jit_compile: Whether XLA compiles the step. Slower for convolutions on CPU.
            run_eagerly: Whether to run without a graph, for debugging.
        """
        self.compile_optimizers(
            {"optimizer": (optimizer, self.trainable_variables)},
            seed=seed,
            gradient_clip_norm=gradient_clip_norm,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
        )

    def compile_optimizers(
        self,
        optimizers: dict[str, tuple[Any, list[keras.Variable]]],
        *,
        seed: int = 0,
        gradient_clip_norm: float | None = None,
        **options: Any,
    ) -> None:
        """What `compile` does, for a model with any number of optimizers.

        Args:
            optimizers: By the name of `compile`'s argument, which becomes an attribute:
                a Keras optimizer or its name, and the variables it updates. The first
                is also Keras's own, the one that callbacks such as
                LearningRateScheduler drive.
            seed: As for `compile`.
            gradient_clip_norm: Likewise, for the gradient of each optimizer.
            **options: The others of `compile`.
        """
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(
                f"`seed` must be a non-negative integer. Received: seed={seed}"
            )
        self.seed = seed
        self.gradient_clip_norm = gradient_clip_norm
        self._optimizers = {}
        for name, (optimizer, variables) in optimizers.items():
            optimizer = keras.optimizers.get(optimizer)
            if optimizer in self._optimizers.values():
                raise ValueError(
                    "Each network needs an optimizer of its own: they keep state. "
                    f"Received: the same one as {' and '.join(optimizers)}."
                )
            scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            if self.dtype_policy.name == "mixed_float16" and not scaled:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            if not optimizer.built:
                # Not in the first step: variables cannot be made inside a replica.
                optimizer.build(variables)
            self._optimizers[name] = optimizer
            setattr(self, name, optimizer)
        if tf.distribute.has_strategy():  # keras-team/keras issue 19246
            options["steps_per_execution"] = 1
        super().compile(optimizer=self.optimizers[0], **options)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if not config:
            return config  # Never compiled.
        names = ("steps_per_execution", "jit_compile", "run_eagerly")
        return {name: config[name] for name in names} | {
            "seed": self.seed,
            "gradient_clip_norm": self.gradient_clip_norm,
            **{
                name: keras.saving.serialize_keras_object(optimizer)
                for name, optimizer in self._optimizers.items()
            },
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with what `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """`keras.Model.fit`; a dataset keeps the order it comes in."""
        if not isinstance(x, np.ndarray):
            kwargs.setdefault("shuffle", False)
        return super().fit(x, *args, **kwargs)

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """Every optimizer, in a fixed order."""
        return list(self._optimizers.values())

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics behind the logs, one for each key."""
        return list(self.log_metrics.values())

    def log(
        self,
        values: dict[str, tf.Tensor],
        *,
        training: bool,
        weights: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Updates the metrics of these names and returns their logs so far.

        Per-row values ([batch]) are averaged over rows, so that an epoch's mean is
        right although its last batch is smaller. With `weights`, of the same shape, the
        mean is one with these.
        """
        for name, value in values.items():
            self.log_metrics[name].update_state(value, sample_weight=weights)
            if training:
                finite = tf.reduce_all(tf.math.is_finite(value))
                self._non_finite[name].update_state(tf.cast(~finite, tf.float32))
        logs = {
            name: metric.result()
            for name, metric in self.log_metrics.items()
            if name in values
        }
        if tf.distribute.has_strategy():
            # Keras reduces the replicas' logs over axis 0, which a scalar lacks
            # (keras issue 20585).
            logs = {name: tf.reshape(value, [1]) for name, value in logs.items()}
        return logs

    def get_metrics_result(self) -> dict[str, Any]:
        """The logs of the pass so far, over all replicas: what `log` was given.

        Keras takes these for an epoch's logs where the names are those of the steps.
        """
        return {
            name: metric.result()
            for name, metric in self.log_metrics.items()
            if float(tf.convert_to_tensor(metric.count.value)) > 0
        }

    def add_log_metrics(self, *metrics: keras.metrics.Metric) -> None:
        """Adds the metrics behind the logs: the terms of the loss before the loss.

        Each has a variable `count`, which is 0 as long as it has been given nothing.
        """
        for metric in metrics:
            self.log_metrics[metric.name] = metric
            self._non_finite[metric.name] = keras.metrics.Sum()

    def first_non_finite(self) -> tuple[str, int] | None:
        """Name and step of the logged value that was the first to be NaN or infinite.

        Every step counts for each value whether it was finite, which costs nothing and
        works inside a compiled loop of many steps: the highest count began first.
        """
        counts = {
            name: int(metric.result()) for name, metric in self._non_finite.items()
        }
        name = max(counts, key=lambda name: counts[name])
        replicas = self.distribute_strategy.num_replicas_in_sync
        steps = -(-counts[name] // replicas)
        return (name, int(self.step.numpy()) - steps + 1) if counts[name] else None

    def run_signature(self, name: str, **inputs: np.ndarray | None) -> np.ndarray:
        """Calls one of `signatures()` and returns its one output.

        It is traced once, for any number of rows, and fed 256 rows at a time to bound
        the memory.

        Args:
            name: Of the signature.
            **inputs: Its inputs, checked, all of the same length; None is left out.
        """
        if name not in self._graphs:
            signature = next(s for s in self.signatures() if s.name == name)
            self._graphs[name] = trace(signature.function, **signature.inputs)
        given = {key: value for key, value in inputs.items() if value is not None}
        num_rows = len(next(iter(given.values())))
        results = []
        for start in range(0, max(num_rows, 1), 256):
            rows = {
                key: tf.constant(value[start : start + 256])
                for key, value in given.items()
            }
            (output,) = self._graphs[name](**rows).values()
            results.append(output.numpy())
        return np.concatenate(results)

    def noise_keys(self, rows: tf.Tensor, stream: int) -> tf.Tensor:
        """Keys for the noise of the current step: int64 [rows].

        Keyed by the row's place in the global batch, so the number of replicas does
        not change the noise of a row, and no two replicas share it. While testing, the
        step does not count: the same weights always get the same loss.

        Args:
            rows: This replica's rows of any batch tensor: [rows, ...].
            stream: One of `kgen.nn.random`'s.
        """
        num_rows = tf.shape(rows, out_type=tf.int64)[0]
        position = self._first_row(rows.shape[0], num_rows) + tf.range(num_rows)
        with tf.control_dependencies([rows]):
            # Noise waits, too, until a batch is found right: it may be all that a
            # network sees, such as a generator whose batch norm averages it.
            position = tf.identity(position)
        step = 0 if stream == random.STREAM_TEST else self.step.value
        return random.keys(self.seed, stream, step, position)

    def _first_row(self, known_num_rows: int | None, num_rows: tf.Tensor) -> tf.Tensor:
        """Rows that the replicas before this one have: a scalar, int64."""
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        if context.num_replicas_in_sync == 1 or known_num_rows is not None:
            return tf.cast(replica, tf.int64) * num_rows  # all have the same
        # The last batch of a pass may be dealt unevenly.
        replicas = tf.range(context.num_replicas_in_sync)
        own = tf.where(replicas > replica, num_rows, 0)  # for those after this one
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)[replica]

    def minimize(self, compute_loss, variables=None, optimizer=None) -> Any:
        """One optimizer step on a mean loss; see `kgen.nn.gradients.minimize`."""
        clip = self.gradient_clip_norm
        return gradients.minimize(
            compute_loss,
            self.trainable_variables if variables is None else variables,
            self.optimizer if optimizer is None else optimizer,
            transform=gradients.clip_by_global_norm(clip) if clip else None,
        )

    def unpack(self, data: Any) -> dict[str, tf.Tensor]:
        """Turns what `fit` feeds into a batch of named tensors, and checks it.

        Takes a dict with the standard names, or the tensor of the first name alone, or
        a pair of the first and the second.

        Raises:
            ValueError: If the first is missing, or one has another shape or type.
            tf.errors.InvalidArgumentError: When the step runs, on values out of range.
        """
        first, second = self.batch_names
        values, others, _ = keras.utils.unpack_x_y_sample_weight(data)
        batch = dict(values) if isinstance(values, dict) else {first: values}
        if others is not None:
            batch[second] = others
        if first not in batch:
            raise ValueError(
                f'A batch is a dict with "{first}" (and "{second}"), or a tensor of '
                f"{first}. Received a dict with the keys {sorted(batch)}."
            )
        return self.check_batch(batch)

    def check_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the batch, whose values wait until they have been found right."""
        raise NotImplementedError(f"{type(self).__name__} checks no batches.")

    def one_hot_labels(self, labels: Any) -> tf.Tensor | None:
        """What the networks get: [batch, num_classes], or None without classes.

        Raises:
            ValueError: If a conditional model gets none.
        """
        if self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(
                f"A conditional {type(self).__name__} needs labels with its images. "
                f"Received: num_classes={self.num_classes} and a batch without "
                '"labels". Use data with labels, or num_classes=None.'
            )
        # tf.one_hot passes over others, and an export has no other check.
        labels = tf.convert_to_tensor(labels)
        known = tf.reduce_all((labels >= 0) & (labels < self.num_classes))
        message = f"`labels` must be from 0 to {self.num_classes - 1}."
        with tf.control_dependencies([tf.debugging.Assert(known, [message])]):
            return tf.one_hot(labels, self.num_classes)

    def check_network(
        self,
        name: str,
        network: keras.layers.Layer,
        takes: tuple[int, ...],
        returns: tuple[int, ...],
    ) -> keras.layers.Layer:
        """Calls a network symbolically, which builds it, and returns it if it fits.

        Args:
            name: Of the argument it may have come from.
            network: Takes rows, and one-hot labels if there are classes.
            takes: Shape of a row.
            returns: Shape that a row must be mapped to.

        Raises:
            ValueError: If it is mapped to another.
        """
        inputs, _, _ = make_inputs(takes, self.num_classes)
        shape = tuple(network(inputs).shape[1:])
        if shape != returns:
            raise ValueError(
                f"`{name}` must map rows of shape {takes} to rows of shape {returns}. "
                f"Received: one that returns rows of shape {shape}."
            )
        return network

    def float32_clone(self) -> GenerativeModel:
        """Returns this model computing in float32: itself, or a copy of its weights."""
        policies = {layer.dtype_policy.name for layer in self._flatten_layers()}
        if policies == {"float32"}:
            return self
        # Own networks carry policies of their own, somewhere inside the config.
        config = json.dumps(self.get_config())
        for policy in policies:
            config = config.replace(f'"{policy}"', '"float32"')
        clone = self.from_config(json.loads(config) | {"dtype": "float32"})
        clone.set_weights(self.get_weights())
        return clone

    def signatures(self) -> list[Signature]:
        """What an export of this model offers, the default one first."""
        raise NotImplementedError(f"{type(self).__name__} defines no signatures.")

    def check_argument(self, name: str, kept: bool, rule: str) -> None:
        """Raises a ValueError that says what the argument must do, and was."""
        if not kept:
            received = getattr(self, name)
            raise ValueError(f"`{name}` must {rule}. Received: {name}={received!r}")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, each an attribute of the same name.

        Own networks are serialised. The default ones are left out, as None: they are
        made again from the other arguments.
        """
        parameters = inspect.signature(type(self).__init__).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        config = {name: getattr(self, name) for name in names}
        for name, network in self.own_networks.items():
            config[name] = keras.saving.serialize_keras_object(network)
        return super().get_config() | config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects=None
    ) -> GenerativeModel:
        """Makes a model from what `get_config` returned."""
        values = {
            name: keras.saving.deserialize_keras_object(value, custom_objects)
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        return cls(**values)

    def health(self, logs: dict[str, float]) -> list[str]:
        """Reads an epoch's logs; returns one warning for each thing that went wrong."""
        return []

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Does nothing: the networks are built by the constructor.

        Keras would read a batch ahead under a strategy, which moves the position in the
        data, and which fails for a dict under several workers.
        """

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the networks are built by the constructor."""
        self.built = True


def trace(
    function: Callable[..., Any], *, jit_compile: bool = False, **inputs: Any
) -> Any:
    """Compiles a function of keyword tensors, once for all sizes of its inputs.

    With `jit_compile` XLA compiles what was traced, once for each of the sizes.
    """
    compiled = tf.function(function, jit_compile=jit_compile or None)
    return compiled.get_concrete_function(**inputs)


@contextlib.contextmanager
def layers_of_policy(policy: keras.DTypePolicy) -> Iterator[None]:
    """Gives the layers that are made inside it a dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
