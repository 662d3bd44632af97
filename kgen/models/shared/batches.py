"""Batches: their names, and the checks before `fit` and its siblings use them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from kgen.models.shared.specs import InputSpec

Batch = dict[str, Any]
WEIGHTS = "sample_weight"


def name_tensors(data: Any, specs: dict[str, InputSpec]) -> Batch:
    """Returns a batch as a dict by the names of `specs`.

    Args:
        data: A dict; or a tensor or array of the first name alone; or a tuple of the
            first, the second, and the sample weights, as Keras has them.
        specs: Specs by name: the first is the training data proper.

    Raises:
        ValueError: A name is missing or unknown.
    """
    first, *others = (name for name in specs if name != WEIGHTS)
    values, second, weights = keras.utils.unpack_x_y_sample_weight(data)
    batch = dict(values) if isinstance(values, dict) else {first: values}
    if second is not None:
        batch[others[0] if others else "targets"] = second
    if weights is not None:
        batch[WEIGHTS] = weights
    batch = {name: value for name, value in batch.items() if value is not None}
    if WEIGHTS in batch and WEIGHTS not in specs:
        raise ValueError(
            "Sample weights need a loss that is a mean over rows, which this model "
            f"does not have. Received: {WEIGHTS} or class_weight. Leave them out."
        )
    needed = [name for name, spec in specs.items() if not spec.optional]
    if not batch.keys() <= specs.keys() or not batch.keys() >= {*needed}:
        optional = [name for name in specs if name not in needed]
        raise ValueError(
            f"A batch must be a dict with {' and '.join(needed)} (optional: "
            f"{', '.join(optional) or 'nothing'}), or a tuple in this order. Received: "
            f"{', '.join(batch) or 'nothing'}."
        )
    return batch


def check_arrays(data: Any, specs: dict[str, InputSpec]) -> Batch:
    """Returns a batch of arrays by name, once every value is found valid.

    Raises:
        ValueError: A name, type, shape or value is wrong, or numbers of rows differ.
    """
    batch, num_rows = name_tensors(data, specs), None
    for name, spec in specs.items():
        if name in batch:
            batch[name] = spec.check(name, batch[name], num_rows)
            num_rows = batch[name].shape[0] if num_rows is None else num_rows
    return batch


def assert_batch(data: Any, specs: dict[str, InputSpec]) -> Batch:
    """Returns a batch of tensors by name, behind assertions of their specs."""
    batch = name_tensors(data, specs)
    return {k: specs[k].assert_in_graph(k, tensor) for k, tensor in batch.items()}


def checked_data(
    data: Any,
    specs: dict[str, InputSpec],
    *,
    class_weight: dict[int, float] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> Any:
    """Returns the data given to `fit` in a form that holds valid batches alone.

    Arrays are checked at once, datasets by assertions in a `map`, the batches of a
    PyDataset or a generator one by one.

    Args:
        data: A dataset, PyDataset or generator of batches; else one batch of all rows,
            as `name_tensors` takes it.
        specs: By name.
        class_weight: Weight of the rows of each class, 1 for those it lacks.
        batch_size: Rows of a batch: ragged rows become a dataset. None: all rows are
            one batch.
        shuffle: Whether such a dataset is shuffled.

    Raises:
        ValueError: A batch is not valid, or a distributed dataset is not checked.
    """
    if isinstance(data, tf.data.Dataset):
        check = tf.autograph.experimental.do_not_convert(
            lambda *batch: assert_batch(
                _weighted(batch if len(batch) > 1 else batch[0], class_weight, specs),
                specs,
            )
        )
        return data.map(check).prefetch(2)
    if isinstance(data, keras.utils.PyDataset):
        return _CheckedPyDataset(data, class_weight, specs)
    if isinstance(data, Iterator):
        weighted = (_weighted(batch, class_weight, specs) for batch in data)
        return ((check_arrays(batch, specs),) for batch in weighted)
    if hasattr(data, "element_spec"):  # Distributed by a strategy.
        if not getattr(data, "is_checked", False) or class_weight is not None:
            raise ValueError(
                "A distributed dataset must be checked before it is distributed. "
                f"Received: {type(data).__name__}. Give `fit` the plain dataset, or "
                "use kgen.training.fit."
            )
        return data
    batch = check_arrays(_weighted(data, class_weight, specs), specs)
    if batch_size is not None and any(
        isinstance(value, tf.RaggedTensor) for value in batch.values()
    ):
        dataset = tf.data.Dataset.from_tensor_slices(batch)
        if shuffle:
            dataset = dataset.shuffle(dataset.cardinality())
        return dataset.batch(batch_size)
    return batch


def checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a method of `keras.Model` so that it gets valid batches alone.

    Arrays, alone or in a dict, are checked whole before the first step; datasets are
    checked as they are read, and keep their order. Invalid batches raise a ValueError.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        arguments = signature.bind(self, *args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        del arguments["self"]
        parts = [arguments.pop(name, None) for name in ("x", "y", "sample_weight")]
        options: dict[str, Any] = {"class_weight": arguments.pop("class_weight", None)}
        if "batch_size" in signature.parameters:
            options["batch_size"] = arguments.get("batch_size") or 32
        if "validation_data" in signature.parameters:  # Of `fit` alone.
            held_out = arguments.get("validation_data")
            if held_out is not None:
                batch_size = arguments.get("validation_batch_size")
                arguments["validation_data"] = checked_data(
                    held_out,
                    self.batch_specs,
                    batch_size=batch_size or options["batch_size"],
                )
            options["shuffle"] = arguments.get("shuffle", True)
        has_parts = parts[1] is not None or parts[2] is not None
        data = tuple(parts) if has_parts else parts[0]
        if not arguments.get("_use_cached_eval_dataset"):  # `fit` has checked it.
            data = checked_data(data, self.batch_specs, **options)
        if "shuffle" in options:  # Keras warns where anything but arrays is shuffled.
            arguments["shuffle"] = options["shuffle"] and isinstance(data, dict)
        with assertions_as_value_errors():
            return method(self, data, **arguments)

    return call


class _CheckedPyDataset(keras.utils.PyDataset):
    """A PyDataset whose batches are checked when they are read."""

    def __init__(self, dataset, class_weight, specs):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset, self.class_weight, self.specs = dataset, class_weight, specs
        self.on_epoch_begin = dataset.on_epoch_begin
        self.on_epoch_end = dataset.on_epoch_end

    def __getitem__(self, index):
        batch = _weighted(self.dataset[index], self.class_weight, self.specs)
        return check_arrays(batch, self.specs)

    @property
    def num_batches(self):
        return self.dataset.num_batches


def _weighted(data, class_weight, specs):
    """Adds row weights by class to a batch, if there are class weights."""
    if class_weight is None:
        return data
    batch = name_tensors(data, specs)
    if WEIGHTS in batch or WEIGHTS not in specs or "labels" not in batch:
        raise ValueError(
            "`class_weight` needs batches with labels and without sample weights, and "
            "a model whose loss is a mean over rows. Received: a batch of "
            f"{', '.join(batch)}."
        )
    labels = batch["labels"]
    weights = tf.ones(tf.shape(labels))
    for label, weight in class_weight.items():
        weights = tf.where(tf.equal(labels, label), float(weight), weights)
    return batch | {WEIGHTS: weights}


_SENTENCE = re.compile(
    r"assertion failed: \[(`[^\n]*)\]|^ValueError: ([^\n]*)", re.MULTILINE
)


@contextlib.contextmanager
def assertions_as_value_errors() -> Iterator[None]:
    """Turns failed assertions inside a dataset into a ValueError with their message."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = _SENTENCE.search(error.message)
        if found is None:
            raise
        raise ValueError(found[1] or found[2]) from error
