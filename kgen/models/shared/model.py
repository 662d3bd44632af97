"""The one class between `keras.Model` and every model of kgen."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared import batches
from kgen.models.shared.batches import Batch
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec
from kgen.nn import gradients, random


class GenerativeModel(keras.Model):
    """What every model of kgen shares: its step, its noise, its metrics.

    A subclass defines `train_step`, `test_step` and `signatures`, keeps each argument
    of its constructor under its own name, and adds one metric for each key of its logs
    with `add_log_metrics`.

    Attributes:
        batch_specs: Spec of each tensor of a batch, by its standard name: the one to
            learn from first.
        compatibility_arguments: Arguments that must be equal for weights to be
            transferable, such as the vocabulary or the item ids.
    """

    batch_specs: dict[str, InputSpec]
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
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        run_eagerly: bool = False,
    ) -> None:
        """Compiles with any number of optimizers.

        Args:
            optimizers: By the name of `compile`'s argument, which becomes an attribute:
                a Keras optimizer or its name, and the variables it updates. The first
                is also Keras's own, the one that callbacks such as
                LearningRateScheduler drive.
            seed: As for `compile`, like all others.
            gradient_clip_norm: Clips the gradient of each optimizer.
            steps_per_execution: As for `compile`.
            jit_compile: As for `compile`.
            run_eagerly: As for `compile`.
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
            if optimizer.use_ema and len(optimizers) > 1:
                raise ValueError(
                    "`use_ema` takes effect with a single optimizer: Keras ends the "
                    f"average of the first one alone. Received: {name} with "
                    "use_ema=True. Use the model's own average, if it has one."
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
            steps_per_execution = 1
        super().compile(
            optimizer=self.optimizers[0],
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
        )

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

    # -- the door: batches are checked here, and not inside a step ----------------

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, on batches that the specs allow.

        Arrays, alone or in a dict, are checked whole before the first step, and are
        shuffled; datasets are checked as they are read, and keep their order.

        Raises:
            ValueError: A batch lacks something, or a value breaks the rule of its spec.
        """
        call = _arguments_of(keras.Model.fit, self, *args, **kwargs)
        batch_size = call.get("batch_size")
        shuffle = call.get("shuffle", True)
        if call.get("validation_data") is not None:
            rows = call.get("validation_batch_size") or batch_size or 32
            call["validation_data"] = batches.checked_data(
                call["validation_data"], self.batch_specs, batch_size=rows
            )
        data = self._checked_data(call, batch_size=batch_size or 32, shuffle=shuffle)
        # Keras warns where anything but arrays would have to be shuffled.
        call["shuffle"] = shuffle and isinstance(data, dict)
        with batches.assertions_as_value_errors():
            return super().fit(data, **call)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does, on batches that the specs allow."""
        call = _arguments_of(keras.Model.evaluate, self, *args, **kwargs)
        data = self._checked_data(call, batch_size=call.get("batch_size") or 32)
        with batches.assertions_as_value_errors():
            return super().evaluate(data, **call)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Maps batches as `call` does, once they are checked."""
        call = _arguments_of(keras.Model.predict, self, *args, **kwargs)
        data = self._checked_data(call, batch_size=call.get("batch_size") or 32)
        with batches.assertions_as_value_errors():
            return super().predict(data, **call)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step on arrays, once they are checked."""
        call = _arguments_of(keras.Model.train_on_batch, self, *args, **kwargs)
        return super().train_on_batch(self._checked_data(call), **call)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates arrays as one batch, once they are checked."""
        call = _arguments_of(keras.Model.test_on_batch, self, *args, **kwargs)
        return super().test_on_batch(self._checked_data(call), **call)

    def predict_on_batch(self, x: Any) -> Any:
        """Maps arrays as one batch, once they are checked."""
        return super().predict_on_batch(self._checked_data({"x": x}))

    def _checked_data(self, call: dict[str, Any], **options: Any) -> Any:
        """Takes the data out of the arguments of a call, and checks it."""
        data = call.pop("x", None)
        rest = [call.pop(name, None) for name in ("y", "sample_weight")]
        if any(one is not None for one in rest):
            data = (data, *rest)
        class_weight = call.pop("class_weight", None)
        return batches.checked_data(
            data, self.batch_specs, class_weight=class_weight, **options
        )

    def read(self, data: Any) -> Batch:
        """Returns a checked batch by name, in the form that networks take.

        Raises:
            ValueError: A name is missing or unknown.
        """
        batch = batches.name_tensors(data, self.batch_specs)
        return {k: self.batch_specs[k].to_network(v) for k, v in batch.items()}

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

    # -- signatures -----------------------------------------------------------

    def signatures(self) -> list[Signature]:
        """Returns what an export of this model offers, the default one first."""
        raise NotImplementedError(f"{type(self).__name__} defines no signatures.")

    def signature(self, name: str, *inputs: str) -> Signature:
        """Returns the first signature of a name, preferably with these inputs.

        Raises:
            ValueError: There is none of this name.
        """
        signatures = self.signatures()
        named = [signature for signature in signatures if signature.name == name]
        if not named:
            raise ValueError(
                f"{type(self).__name__} offers "
                f"{', '.join(dict.fromkeys(s.name for s in signatures))}. "
                f"Received: {name}."
            )
        fitting = [one for one in named if one.inputs.keys() >= {*inputs}]
        return (fitting or named)[0]

    def run(self, signature: str | Signature, **inputs: Any) -> dict[str, np.ndarray]:
        """Calls a signature on any number of rows; returns its outputs by name.

        It is traced once, for any number of rows, and fed at most `max_rows` at a time
        to bound the memory.

        Args:
            signature: Its name; or one that is not exported, of a name of its own.
            **inputs: Its inputs; those with a default may be left out, or None.

        Raises:
            ValueError: An input is missing, unknown or invalid.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        name = signature if isinstance(signature, str) else signature.name
        key = f"{name}({', '.join(given)})"
        if key not in self._graphs:
            found = signature
            if isinstance(found, str):
                found = self.signature(name, *given)
            self._graphs[key] = (found, found.compiled())
        found, graph = self._graphs[key]
        arrays = found.check(**given)
        num_rows = len(next(iter(arrays.values())))
        parts = []
        for start in range(0, max(num_rows, 1), found.max_rows):
            rows = slice(start, start + found.max_rows)
            outputs = graph(*(tf.constant(array[rows]) for array in arrays.values()))
            parts.append({name: value.numpy() for name, value in outputs.items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def graph(
        self, name: str, function: Any, *, jit_compile: bool = False, **inputs: Any
    ) -> Any:
        """Returns a function of keyword tensors, traced once for all sizes of inputs.

        With `jit_compile` XLA compiles it, once for each of the sizes.
        """
        key = f"{name}/xla" if jit_compile else f"{name}/graph"
        if key not in self._graphs:
            self._graphs[key] = trace(function, jit_compile=jit_compile, **inputs)
        return self._graphs[key]

    # -- a training step ------------------------------------------------------

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

    def recording(
        self,
        network: keras.layers.Layer | None = None,
        optimizer: keras.optimizers.Optimizer | None = None,
    ) -> gradients.Recording:
        """Records the losses of one optimizer step: see `kgen.nn.gradients`.

        Args:
            network: Layer whose trainable variables are updated; by default all.
            optimizer: Their optimizer; by default the only one.
        """
        clip = self.gradient_clip_norm
        return gradients.Recording(
            (self if network is None else network).trainable_variables,
            self.optimizer if optimizer is None else optimizer,
            transform=gradients.clip_by_global_norm(clip) if clip else None,
        )

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
            if network is not None:
                # Its optimizer is no part of this model, which trains its weights.
                config[name].pop("compile_config", None)
        layers = self._flatten_layers(include_self=False)
        config["frozen_layers"] = [
            index for index, layer in enumerate(layers) if not layer.trainable
        ]
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
        frozen = values.pop("frozen_layers", ())
        model = cls(**values)
        # From the outside in: a layer passes `trainable` on to those inside it.
        for index, layer in enumerate(model._flatten_layers(include_self=False)):
            if layer.trainable == (index in frozen):
                layer.trainable = index not in frozen
        return model

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model as a .keras file.

        Raises:
            ValueError: Another ending, of a format that cannot be loaded again.
        """
        if Path(filepath).suffix != ".keras":
            raise ValueError(
                "`filepath` must end in .keras. Received: "
                f"filepath={str(filepath)!r}. For deployment use kgen.export."
            )
        super().save(filepath, *args, **kwargs)

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


def _arguments_of(method: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of a method by name, without `self`."""
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    return {k: v for k, v in bound.items() if k not in ("self", "kwargs")} | bound.get(
        "kwargs", {}
    )


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
