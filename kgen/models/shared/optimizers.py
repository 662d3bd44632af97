"""Optimizers of a model, from the arguments of `compile`."""

from __future__ import annotations

from typing import Any

import keras


def built_optimizers(
    model: Any, optimizers: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, keras.optimizers.Optimizer]:
    """Returns an optimizer for each of a model's slots, built on its variables.

    Args:
        model: A `GenerativeModel`.
        optimizers: Keras optimizers or their names, in the order of the slots; None for
            the default.
        named: The same, by slot.

    Raises:
        TypeError, ValueError: An optimizer is unknown, or does not fit the model.
    """
    slots = model.optimizer_slots
    given = dict(zip(slots, optimizers, strict=False)) | named
    if len(optimizers) > len(slots) or not given.keys() <= slots.keys():
        unknown = ", ".join(given.keys() - slots.keys()) or f"{len(optimizers)}"
        raise TypeError(
            f"`compile` takes the optimizers {', '.join(slots)}; losses and metrics "
            f"are the model's own. Received an unexpected: {unknown}"
        )
    built: dict[str, keras.optimizers.Optimizer] = {}
    for name, (network_name, make_default) in slots.items():
        optimizer = keras.optimizers.get(given.get(name) or make_default())
        if not optimizer.built:
            model.prepare_optimizer(getattr(optimizer, "inner_optimizer", optimizer))
        if optimizer in built.values():
            raise ValueError(
                "Each network needs an optimizer of its own: they keep state. "
                f"Received: the same one as {' and '.join(slots)}."
            )
        if optimizer.use_ema and len(slots) > 1:
            raise ValueError(
                "`use_ema` takes effect with a single optimizer: Keras ends the "
                f"average of the first one alone. Received: {name} with use_ema=True. "
                "Use the model's own average, if it has one."
            )
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if model.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if not optimizer.built:
            # Not in the first step: variables cannot be made inside a replica.
            network = model if network_name is None else getattr(model, network_name)
            optimizer.build(network.trainable_variables)
        built[name] = optimizer
    return built
