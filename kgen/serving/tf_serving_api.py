"""The bodies of TensorFlow Serving's REST API: JSON to arrays, and back."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import orjson
import tensorflow as tf

from kgen.serving.batching import BadRequest
from kgen.serving.versions import Arrays, Endpoint, Version

# Kinds of NumPy's types that an input of a kind takes, and their names in JSON.
TAKEN = {"b": "b", "f": "iuf", "i": "iu", "u": "iu"}
RECEIVED = {
    "b": "true or false",
    "f": "numbers with a fraction",
    "i": "whole numbers",
    "U": "text",
}


def read_object(body: bytes, example: str) -> dict[str, Any]:
    """Parses a body that is a JSON object.

    Args:
        body: The bytes of the request.
        example: An example of such an object, for the error.

    Raises:
        BadRequest: The body is not JSON, or not an object.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"JSON Parse error: {error}") from error
    if not isinstance(request, dict):
        raise BadRequest(f"A request is an object: {example}.")
    return request


def read_request(body: bytes, version: Version) -> tuple[Endpoint, Arrays, bool]:
    """Reads the body of a `predict` request.

    Returns:
        The endpoint, its inputs, and whether they came row by row, as "instances".

    Raises:
        BadRequest: It is not JSON, or its form or types do not fit the endpoint.
    """
    request = read_object(body, '{"instances": [...]}')
    unknown = sorted(request.keys() - {"signature_name", "instances", "inputs"})
    if unknown:
        raise BadRequest(
            'A request has "signature_name", and "instances" or "inputs". Received: '
            f"{', '.join(unknown)[:200]}"
        )
    name = request.get("signature_name", "")
    name = "serving_default" if name == "" else name
    if not isinstance(name, str) or name not in version.endpoints:
        raise BadRequest(
            f'Serving signature name: "{str(name)[:200]}" not found in signature def. '
            f"There are {', '.join(sorted(version.endpoints))}."
        )
    if ("instances" in request) == ("inputs" in request):
        raise BadRequest('A request has either "instances" or "inputs", and not both.')
    endpoint = version.endpoints[name]
    by_row = "instances" in request
    columns = (
        _columns_of_rows(request["instances"], endpoint)
        if by_row
        else _named(request["inputs"], endpoint)
    )
    arrays = {
        key: to_array(key, columns[key], spec) for key, spec in endpoint.inputs.items()
    }
    counts = {key: len(array) for key, array in arrays.items()}
    if len({*counts.values()}) > 1:
        listed = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise BadRequest(f"All inputs have the same number of rows. Received: {listed}")
    return endpoint, arrays, by_row


def write_status(numbers: list[int]) -> dict[str, Any]:
    """The status of loaded versions."""
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for number in numbers
        ]
    }


def write_predictions(outputs: Arrays, by_row: bool) -> bytes:
    """The body of an answer: "predictions" for "instances", "outputs" for "inputs"."""
    plain = {name: _plain(name, array) for name, array in outputs.items()}
    answer: Any = plain
    if len(plain) == 1:
        [answer] = plain.values()
    elif by_row:
        rows = zip(*plain.values(), strict=True)
        answer = [dict(zip(plain, row, strict=True)) for row in rows]
    body = {"predictions" if by_row else "outputs": answer}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def write_metadata(name: str, version: Version) -> bytes:
    """The body that describes the inputs and outputs of the endpoints."""
    return orjson.dumps(
        {
            "model_spec": {
                "name": name,
                "signature_name": "",
                "version": str(version.number),
            },
            "metadata": {"signature_def": {"signature_def": version.definitions}},
        }
    )


def _columns_of_rows(rows: Any, endpoint: Endpoint) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not rows:
        raise BadRequest('"instances" is a list with a row at least.')
    if len({_has_names(row) for row in rows}) > 1:
        raise BadRequest('"instances" are all objects, or all values.')
    named = [_named(row, endpoint) for row in rows]
    return {name: [row[name] for row in named] for name in endpoint.inputs}


def _has_names(values: Any) -> bool:
    return isinstance(values, dict) and values.keys() != {"b64"}


def _named(values: Any, endpoint: Endpoint) -> dict[str, Any]:
    """Values by the names of the inputs; without names, those of the only input."""
    names = endpoint.inputs.keys()
    if not _has_names(values):
        if len(names) > 1:
            raise BadRequest(
                f"The inputs are {', '.join(names)}: an object with all of them is "
                "needed. Received: values without names."
            )
        return dict.fromkeys(names, values)
    if values.keys() != names:
        raise BadRequest(
            f"The inputs are {', '.join(names)}. Received: "
            f"{', '.join(map(str, values))[:200] or 'none'}"
        )
    return values


def to_array(name: str, values: Any, spec: tf.TensorSpec) -> np.ndarray:
    """The array of an input, of its type and shape.

    Raises:
        BadRequest: The values do not fit.
    """
    shape = [-1 if size is None else size for size in spec.shape]
    wanted = f"`{name}` must be {spec.dtype.name} of the shape {shape}"
    if spec.dtype == tf.string:
        values = _bytes_in(values, name)
    try:
        array = np.array(values, object if spec.dtype == tf.string else None)
    except (ValueError, OverflowError) as error:  # Lists of different lengths.
        raise BadRequest(f"{wanted}. Received: lists of different lengths") from error
    if not spec.shape.is_compatible_with(array.shape):
        raise BadRequest(f"{wanted}. Received: the shape {[*array.shape]}")
    if spec.dtype == tf.string:
        if any(not isinstance(one, bytes) for one in array.flat):
            raise BadRequest(f"{wanted}. Received: values that are not text")
        return array
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    if not array.size and array.dtype == float:
        return array.astype(dtype)
    if array.dtype.kind not in TAKEN[dtype.kind]:
        received = RECEIVED.get(array.dtype.kind, "other values")
        raise BadRequest(f"{wanted}. Received: {received}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if not limits.min <= array.min() <= array.max() <= limits.max:
            raise BadRequest(f"{wanted}. Received: a number beyond its range")
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise BadRequest(f"{wanted}. Received: a number that is not finite")
    return array


def _bytes_in(values: Any, name: str) -> Any:
    """Texts as bytes, those in base 64 decoded; anything else as it is."""
    if isinstance(values, list):
        return [_bytes_in(value, name) for value in values]
    if isinstance(values, str):
        return values.encode("utf-8", "surrogatepass")
    if isinstance(values, dict) and values.keys() == {"b64"}:
        try:
            return base64.b64decode(values["b64"], validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise BadRequest(f"`{name}` has a b64 that is not base 64.") from error
    return values


def _plain(name: str, array: np.ndarray) -> Any:
    """The JSON form of an array; base 64 where the name ends in `_bytes`."""
    if array.dtype != object:
        return array
    if name.endswith("_bytes"):
        of_one = np.vectorize(
            lambda one: {"b64": base64.b64encode(one).decode()}, otypes=[object]
        )
    else:
        of_one = np.vectorize(lambda one: one.decode("utf-8", "replace"), [object])
    return of_one(array).tolist()
