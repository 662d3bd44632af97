"""The bodies of TensorFlow Serving's REST API: JSON to arrays, and back."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from tensorflow.core.framework.types_pb2 import DataType

from kgen.serving.batching import BadRequest
from kgen.serving.versions import Arrays, Endpoint, Version


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
        else _columns(request["inputs"], endpoint)
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
    single = len(plain) == 1
    answer: Any
    if not by_row:
        answer = {"outputs": next(iter(plain.values())) if single else plain}
    elif single:
        answer = {"predictions": next(iter(plain.values()))}
    else:
        rows = zip(*plain.values(), strict=True)
        answer = {"predictions": [dict(zip(plain, row, strict=True)) for row in rows]}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def write_metadata(name: str, version: Version) -> bytes:
    """The body that describes the inputs and outputs of the endpoints."""
    return orjson.dumps(
        {
            "model_spec": {
                "name": name,
                "signature_name": "",
                "version": str(version.number),
            },
            "metadata": {"signature_def": {"signature_def": definitions(version)}},
        }
    )


def definitions(version: Version) -> dict[str, Any]:
    """The endpoints by name, as TensorFlow Serving describes them."""
    return {
        key: {
            "inputs": _tensors(endpoint.inputs, endpoint, key),
            "outputs": _tensors(endpoint.outputs, endpoint, key),
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        for key, endpoint in version.endpoints.items()
    }


def _tensors(
    specs: dict[str, tf.TensorSpec], endpoint: Endpoint, signature: str
) -> dict[str, Any]:
    return {
        name: {
            "dtype": DataType.Name(spec.dtype.as_datatype_enum),
            "tensor_shape": {
                "dim": [
                    {"size": str(-1 if size is None else size), "name": ""}
                    for size in spec.shape
                ],
                "unknown_rank": False,
            },
            "name": endpoint.names.get(name, f"{signature}_{name}:0"),
        }
        for name, spec in specs.items()
    }


def _columns(inputs: Any, endpoint: Endpoint) -> dict[str, Any]:
    if not isinstance(inputs, dict) or inputs.keys() == {"b64"}:
        inputs = {_only_input(endpoint): inputs}
    _check_names(inputs.keys(), endpoint)
    return inputs


def _columns_of_rows(rows: Any, endpoint: Endpoint) -> dict[str, Any]:
    if not isinstance(rows, list) or not rows:
        raise BadRequest('"instances" is a list with a row at least.')
    named = [isinstance(row, dict) and row.keys() != {"b64"} for row in rows]
    if not any(named):
        return {_only_input(endpoint): rows}
    if not all(named):
        raise BadRequest('"instances" are all objects, or all values.')
    for row in rows:
        _check_names(row.keys(), endpoint)
    return {name: [row[name] for row in rows] for name in endpoint.inputs}


def _only_input(endpoint: Endpoint) -> str:
    if len(endpoint.inputs) > 1:
        raise BadRequest(
            f"The inputs are {', '.join(endpoint.inputs)}: an object with all of them "
            "is needed. Received: values without names."
        )
    return next(iter(endpoint.inputs))


def _check_names(names: Any, endpoint: Endpoint) -> None:
    if names != endpoint.inputs.keys():
        raise BadRequest(
            f"The inputs are {', '.join(endpoint.inputs)}. Received: "
            f"{', '.join(map(str, names))[:200] or 'none'}"
        )


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
    dtype = spec.dtype.as_numpy_dtype
    is_whole = np.issubdtype(dtype, np.integer)
    if not array.size and array.dtype == float:
        return array.astype(dtype)
    if array.dtype.kind not in ("iu" if is_whole else "iuf"):
        raise BadRequest(f"{wanted}. Received: {_kind(array)}")
    if is_whole:
        limits = np.iinfo(dtype)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            raise BadRequest(f"{wanted}. Received: a number beyond its range")
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not is_whole and not np.isfinite(array).all():
        raise BadRequest(f"{wanted}. Received: a number that is not finite")
    return array


def _kind(array: np.ndarray) -> str:
    kinds = {"b": "true or false", "f": "numbers with a fraction", "U": "text"}
    return kinds.get(array.dtype.kind, "other values")


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
    flat: list[Any] = [
        {"b64": base64.b64encode(one).decode()}
        if name.endswith("_bytes")
        else one.decode("utf-8", "replace")
        for one in array.flat
    ]
    if array.ndim == 1:
        return flat
    width = array.shape[1]
    return [flat[i * width : (i + 1) * width] for i in range(len(array))]
