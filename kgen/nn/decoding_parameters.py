"""Parameters of decoding, with their ranges: for Python, graphs, click and HTTP."""

from __future__ import annotations

import dataclasses
from typing import Any

# Standard library only up here: the command line shows these options.

MAX_TOKENS = 4096  # limit of `max_new_tokens` per row in exports and the server
MAX_BEAMS = 64


def parameter(default: float, help: str, dtype: str = "float32", **limits: Any) -> Any:
    """Makes a field with its default, help, and the arguments of its `InputSpec`.

    Args:
        default: Value that changes nothing.
        help: Help of the command-line option.
        dtype: Type of the tensor.
        **limits: `low` and `high`; `above` excludes `low`.
    """
    metadata = {"help": help, "spec": {"dtype": dtype, **limits}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SamplingParameters:
    """Parameters of `kgen.nn.sampling.next_tokens`: a number, or one for each row."""

    temperature: Any = parameter(
        1.0, "Scale of the noise; 0: the likeliest text; default: 1.", low=0
    )
    top_k: Any = parameter(
        0,
        "Sample from so many tokens; 0: all. BERT: predictions to print.",
        "int32",
        low=0,
    )
    top_p: Any = parameter(
        1.0,
        "Sample from the likeliest tokens of this total probability.",
        low=0,
        high=1,
        above=True,
    )
    min_p: Any = parameter(
        0.0,
        "Sample from tokens with this share of the highest probability.",
        low=0,
        high=1,
    )
    repetition_penalty: Any = parameter(
        1.0, "Divisor of the logits of tokens seen before.", low=0, above=True
    )


@dataclasses.dataclass(frozen=True)
class BeamParameters:
    """Parameters of `kgen.nn.decoding.beam_search`: a number, or one for each row."""

    num_beams: Any = parameter(
        1,
        "Beam search with so many beams instead of sampling.",
        "int32",
        low=1,
        high=MAX_BEAMS,
    )
    length_penalty: Any = parameter(
        0.0,
        "Exponent of the length in the score of a beam; 0: the likelihood alone.",
        low=0,
    )


def defaults(parameters: type[Any]) -> dict[str, Any]:
    """Default of each parameter."""
    return {field.name: field.default for field in dataclasses.fields(parameters)}
