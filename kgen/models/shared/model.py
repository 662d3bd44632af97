"""Base class of all models: steps, noise, metrics, signatures, serialization."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.arguments import argument_names, check, require
from kgen.models.shared import batches
from kgen.models.shared.batches import Batch
from kgen.models.shared.optimizers import built_optimizers
from kgen.models.shared.signatures import Signature, trace
from kgen.models.shared.specs import InputSpec
from kgen.nn import gradients, random


class GenerativeModel(keras.Model):
    """Base class of all models: training step, noise keys, metrics, signatures.

    A subclass defines `train_step`, `test_step` and `signatures`, keeps each argument
    of its constructor under its own name with `keep_arguments`, and adds one metric for
    each key of its logs with `add_log_metrics`. Its constructor builds all networks.

    Attributes:
        batch_specs: Spec of each tensor of a batch, by its standard name: the
            training data proper first.
        compatibility_arguments: Arguments that must be equal for weights to be
            transferable, such as the vocabulary or the item ids.
    """

    batch_specs: dict[str, InputSpec]
    compatibility_arguments: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Schedules and noise are functions of these counters and of nothing else: they
        # are saved with the model, so a resumed run goes on where it was.
        self.step = self.add_counter("step")
        self.examples_seen = self.add_counter("examples_seen")
        # By the attribute of the average: that of the network, and the half-life.
        self._averages: dict[str, tuple[str, int]] = {}
        self.seed = 0
        # Arguments that are Keras layers of the user's, by name; None for the default.
        self.own_networks: dict[str, keras.layers.Layer | None] = {}
        self.log_metrics: dict[str, keras.metrics.Metric] = {}
        self._non_finite: dict[str, keras.metrics.Metric] = {}
        self._graphs: dict[str, Any] = {}
        # By name: the attribute of the network that it updates, None for all of the
        # model, and a function that makes the default.
        self.optimizer_slots: dict[str, tuple[str | None, Callable[[], Any]]] = {
            "optimizer": (None, keras.optimizers.Adam)
        }
        self._optimizers: dict[str, keras.optimizers.Optimizer] = {}
        self.built = True

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """Keeps a constructor's arguments as attributes, sequences as tuples.

        An argument for which the class has a property is left to the property.

        Args:
            arguments: `locals()` at the beginning of the constructor.

        Raises:
            ValueError: An argument is out of the range that its annotation states.
        """
        constructor = arguments["__class__"].__init__
        hints = typing.get_type_hints(constructor, include_extras=True)
        for name in argument_names(constructor):
            value = arguments[name]
            if isinstance(getattr(type(self), name, None), property):
                continue
            if np.iterable(value) and not isinstance(value, str | dict):
                value = tuple(value)
            setattr(self, name, value)
            check(name, value, hints[name])

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

    def add_average(self, name: str, network_name: str, half_life: int) -> None:
        """Adds a copy of a network with the moving average of its weights.

        Args:
            name: Attribute of the model that is to hold the copy.
            network_name: Attribute with the network, which has been built.
            half_life: In examples: see `kgen.nn.gradients.ema_decay`.
        """
        network = getattr(self, network_name)
        average = type(network).from_config(network.get_config())
        average.build_from_config(network.get_build_config())
        average.set_weights(network.get_weights())
        average.trainable = False
        setattr(self, name, average)
        self._averages[name] = (network_name, half_life)

    def compile(
        self,
        *optimizers: str | keras.optimizers.Optimizer | None,
        seed: int = 0,
        estimator: gradients.GradientEstimator | None = None,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        run_eagerly: bool = False,
        **named: str | keras.optimizers.Optimizer | None,
    ) -> None:
        """Prepares the model for `fit`. The losses and metrics are the model's own.

        Args:
            *optimizers: Keras optimizers or their names, in the order of
                `optimizer_slots`; built here, on the spot. Callbacks that set a
                learning rate set that of the first. Under `mixed_float16` each is
                wrapped in a `LossScaleOptimizer`.
            seed: Non-negative integer; all training noise follows from it.
            estimator: Estimator of the gradients, such as MeanGradient(clip_norm=1.0);
                by default the gradient of the mean loss.
            steps_per_execution: Steps in one call of the compiled function. 32 or more
                makes small models markedly faster; logs are seen that much less often.
                Under a distribution strategy it is 1: Keras fails with more there.
            jit_compile: Whether XLA compiles the step. Slower for convolutions on CPU.
            run_eagerly: Whether to run without a graph, for debugging.
            **named: Optimizers by the names of `optimizer_slots`.

        Raises:
            TypeError, ValueError: An unknown argument, such as a loss; a wrong one.
        """
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(
                f"`seed` must be a non-negative integer. Received: seed={seed}"
            )
        self.seed = seed
        self.estimator = estimator or gradients.MeanGradient()
        self._optimizers = built_optimizers(self, optimizers, named)
        for name, optimizer in self._optimizers.items():
            setattr(self, name, optimizer)
        if tf.distribute.has_strategy():  # keras-team/keras issue 19246
            steps_per_execution = 1
        super().compile(
            optimizer=self.optimizers[0],
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
        )

    def prepare_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Sets up an optimizer before it is built on its variables."""

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if not config:
            return config  # Never compiled.
        names = ("steps_per_execution", "jit_compile", "run_eagerly")
        config = {name: config[name] for name in names}
        objects = {**self._optimizers, "estimator": self.estimator}
        config |= keras.saving.serialize_keras_object(objects)
        return config | {"seed": self.seed}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with what `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    # Batches are checked before the step, not inside it.
    fit = batches.checked(keras.Model.fit)
    evaluate = batches.checked(keras.Model.evaluate)
    predict = batches.checked(keras.Model.predict)
    train_on_batch = batches.checked(keras.Model.train_on_batch)
    test_on_batch = batches.checked(keras.Model.test_on_batch)
    predict_on_batch = batches.checked(keras.Model.predict_on_batch)

    def read(self, data: Any) -> Batch:
        """Returns a checked batch by name, in the form that networks take.

        Raises:
            ValueError: A name is missing or unknown.
        """
        if not isinstance(data, dict):  # As Keras has them where `fit` is not used.
            data = batches.name_tensors(data, self.batch_specs)
        return {name: self.batch_specs[name].to_network(data[name]) for name in data}

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
        logs = {k: m.result() for k, m in self.log_metrics.items() if k in values}
        if tf.distribute.has_strategy():
            # Keras reduces the replicas' logs over axis 0, which a scalar lacks
            # (keras issue 20585).
            logs = {name: tf.reshape(value, [1]) for name, value in logs.items()}
        return logs

    def get_metrics_result(self) -> dict[str, Any]:
        """The logs of the pass so far, aggregated over all replicas.

        Keras takes these for an epoch's logs where the names are those of the steps.
        """
        return {
            name: metric.result()
            for name, metric in self.log_metrics.items()
            if float(tf.convert_to_tensor(metric.count.value)) > 0
        }

    def add_log_metrics(self, *metrics: keras.metrics.Metric | str) -> None:
        """Adds the metrics behind the logs: the terms of the loss before the loss.

        A name is the mean of its values. Each metric has a variable `count`, which is 0
        as long as it has been given nothing.
        """
        for metric in metrics:
            if isinstance(metric, str):
                metric = keras.metrics.Mean(name=metric)
            self.log_metrics[metric.name] = metric
            self._non_finite[metric.name] = keras.metrics.Sum()

    def first_non_finite(self) -> tuple[str, int] | None:
        """Name and step of the first logged value that was NaN or infinite.

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
        """Returns the signatures of this model, the default one first."""
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

    def run(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Calls a signature on any number of rows; returns its outputs by name.

        Args:
            name: Name of the signature.
            **inputs: Its inputs; those with a default may be left out, or None.

        Raises:
            ValueError: An input is missing, unknown or invalid.
        """
        given = {key: value for key, value in inputs.items() if value is not None}
        key = f"{name}({', '.join(given)})"
        if key not in self._graphs:
            self._graphs[key] = self.signature(name, *given)
        return self._graphs[key](**given)

    def graph(
        self, name: str, function: Any, *, jit_compile: bool = False, **inputs: Any
    ) -> Any:
        """Returns a function of keyword tensors, traced once for all sizes of inputs.

        With `jit_compile` XLA compiles it, once for each of the sizes.
        """
        key = f"{name}/{jit_compile}"
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
        step = 0 if stream == random.STREAM_TEST else self.step.value
        positions = random.global_positions(rows)
        return random.keys(self.seed, stream, step, positions)

    def recording(self, optimizer: str | None = None) -> gradients.Recording:
        """Records losses for one step of an optimizer: see `kgen.nn.gradients`.

        Args:
            optimizer: Name in `optimizer_slots`, where the network stands whose
                variables it updates; by default the only one.
        """
        name = next(iter(self.optimizer_slots)) if optimizer is None else optimizer
        network_name, _ = self.optimizer_slots[name]
        network = self if network_name is None else getattr(self, network_name)
        return gradients.Recording(
            network.trainable_variables,
            self._optimizers[name],
            self.estimator,
            network._flatten_layers(),
        )

    def finish_step(self, rows: tf.Tensor) -> None:
        """Counts a training step and its examples, and moves the averages.

        Args:
            rows: Any tensor with a row for each example of this replica.
        """
        num_examples = random.global_number(rows)
        for name, (network_name, half_life) in self._averages.items():
            decay = gradients.ema_decay(
                self.examples_seen.value, num_examples, half_life
            )
            average, network = getattr(self, name), getattr(self, network_name)
            gradients.update_average(average.variables, network.variables, decay)
        self.step.assign_add(1)
        self.examples_seen.assign_add(num_examples)

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
        """Raises a ValueError with the argument's rule and the received value."""
        require(kept, name, getattr(self, name), rule)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, each an attribute of the same name.

        Own networks are serialised. The default ones are left out, as None: they are
        made again from the other arguments.
        """
        names = argument_names(type(self).__init__)
        config = {name: getattr(self, name) for name in names}
        for name, value in config.items():
            if hasattr(value, "get_config"):
                config[name] = keras.saving.serialize_keras_object(value)
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
        values = keras.saving.deserialize_keras_object(config, custom_objects)
        frozen = values.pop("frozen_layers", ())
        model = cls(**values)
        # From the outside in: a layer passes `trainable` on to its sublayers.
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
        """Returns warnings of failures that an epoch's logs show."""
        return []

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Does nothing: the networks are built by the constructor.

        Keras would read a batch ahead under a strategy, which moves the position in the
        data, and which fails for a dict under several workers.
        """

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the networks are built by the constructor."""
        self.built = True
