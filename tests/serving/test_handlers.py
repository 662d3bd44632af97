"""The server from its routes to the model, and versions that come and go."""

import asyncio
import concurrent.futures
import gzip
import json
import os
import shutil
import threading

import numpy as np
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from kgen.export import ExportError
from kgen.serving import ServedModel, make_application
from kgen.serving.handlers import Handlers
from served_models import export_model

SHIFT = "/v1/models/shift"


@pytest.fixture
def client(folder):
    application = make_application([ServedModel(folder)], refresh_seconds=0.05)
    with TestClient(application) as client:
        yield client


def shifted(client, *rows, place=""):
    answer = client.post(f"{SHIFT}{place}:predict", json={"instances": rows})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_a_model_answers(client):
    assert shifted(client, [1, 2], [3, 4]) == [[2, 3], [4, 5]]
    body = {"signature_name": "repeat", "inputs": {"texts": ["ab"], "times": [2]}}
    answer = client.post(f"{SHIFT}:predict", json=body)
    assert answer.json() == {
        "outputs": {"repeated": ["abab"], "file_bytes": [{"b64": "YWJhYg=="}]}
    }
    assert answer.headers["content-type"] == "application/json"
    assert client.get("/health").json() == {"status": "ok"}


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("kgen serve", "")
    [model] = client.get("/v1/models").json()["models"]
    assert (model["name"], model["version"]) == ("shift", 1)
    assert model["about"] == {"model": "Shift"}
    assert model["signature_def"]["repeat"]["inputs"]["texts"]["dtype"] == "DT_STRING"


def test_handlers_can_be_called_by_name(folder):
    """Without routes, a server, or a client."""
    handlers = Handlers([ServedModel(folder)])
    scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    scope["path_params"] = {"name": "shift"}

    async def receive():
        return {"type": "http.request", "body": b'{"inputs": [[1, 2]]}'}

    answer = asyncio.run(handlers.predict(Request(scope, receive)))
    assert json.loads(answer.body) == {"outputs": [[2, 3]]}


def test_status_and_metadata(client):
    available = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for place in ("", "/versions/1"):
        answer = client.get(f"{SHIFT}{place}")
        assert answer.json() == {"model_version_status": [available]}
        metadata = client.get(f"{SHIFT}{place}/metadata").json()["metadata"]
        assert "repeat" in metadata["signature_def"]["signature_def"]


@pytest.mark.parametrize(
    ("method", "path", "code", "message"),
    [
        ("get", "/v1/models/other", 404, "Servable not found for request: Latest"),
        ("get", f"{SHIFT}/versions/2", 404, "Specific.shift, 2"),
        ("get", f"{SHIFT}/versions/{'9' * 5000}", 404, "Servable not found"),
        ("get", f"{SHIFT}/versions/x", 404, "Servable not found"),
        ("get", f"{SHIFT}/labels/stable", 404, "Unrecognized servable version label"),
        ("post", f"{SHIFT}/versions/2:predict", 404, "Servable not found"),
        ("get", f"{SHIFT}:predict", 404, "Servable not found"),
        ("get", "/v2", 404, "Not Found"),
    ],
)
def test_unknown_paths(client, method, path, code, message):
    answer = client.request(method, path)
    assert answer.status_code == code
    assert message.replace(".", "(") in answer.json()["error"].replace(".", "(")


def test_inputs_that_the_model_refuses_are_status_400(client):
    answer = client.post(f"{SHIFT}:predict", json={"inputs": [[1, 200]]})
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "`values` too large."},
    )
    answer = client.post(f"{SHIFT}:predict", content=b"{")
    assert answer.status_code == 400 and "JSON Parse" in answer.json()["error"]


def test_bodies_and_batches_are_bounded(folder):
    application = make_application(
        [ServedModel(folder)], max_body_bytes=1000, max_rows=3, timeout_seconds=0.3
    )
    with TestClient(application) as client:
        rows = {"inputs": [[0, 0]] * 4}
        answer = client.post(f"{SHIFT}:predict", json=rows)
        assert answer.status_code == 413 and "3 rows" in answer.json()["error"]
        answer = client.post(f"{SHIFT}:predict", content=b" " * 1001)
        assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]

        def without_length():
            for _ in range(1001):
                yield b" "

        answer = client.post(f"{SHIFT}:predict", content=without_length())
        assert answer.status_code == 413


def post_packed(client, content, encoding="gzip"):
    headers = {"Content-Encoding": encoding}
    return client.post(f"{SHIFT}:predict", content=content, headers=headers)


def test_gzip_bodies_are_unpacked_within_the_same_limit(folder):
    body = json.dumps({"inputs": [[1, 2]]}).encode()
    packed = gzip.compress(body)
    application = make_application([ServedModel(folder)], max_body_bytes=1000)
    with TestClient(application) as client:
        for encoding, content in (
            ("gzip", packed),
            ("GZIP", packed),
            ("identity", body),
        ):
            answer = post_packed(client, content, encoding)
            assert answer.json() == {"outputs": [[2, 3]]}
        # 1,000 bytes are the most, packed and unpacked: a bomb is not unpacked.
        assert post_packed(client, gzip.compress(body.ljust(1000))).status_code == 200
        for size in (1001, 10**8):
            answer = post_packed(client, gzip.compress(body.ljust(size))[:1000])
            assert answer.status_code == 413
            assert "1000 bytes, unpacked" in answer.json()["error"]
        for content in (body, packed[:-1], packed + b"x", packed + packed, b""):
            answer = post_packed(client, content)
            assert answer.status_code == 400 and "gzip" in answer.json()["error"]
        for encoding in ("br", "deflate", "gzip, gzip"):
            answer = post_packed(client, packed, encoding)
            assert answer.status_code == 415
            assert answer.headers["accept-encoding"] == "gzip"
            assert f"Received: {encoding}" in answer.json()["error"]


def test_a_slow_answer_is_status_503(folder):
    model = ServedModel(folder)
    [version] = model.loaded.versions.values()
    endpoint = version.endpoints["serving_default"]
    slow = threading.Event()
    object.__setattr__(
        endpoint,
        "call",
        lambda arrays: {"shifted": arrays["values"], "none": slow.wait(3)},
    )
    with TestClient(make_application([model], timeout_seconds=0.2)) as client:
        answer = client.post(f"{SHIFT}:predict", json={"inputs": [[0, 0]]})
        assert answer.status_code == 503 and "within 0.2 s" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
        slow.set()


def test_a_new_version_takes_over_and_no_request_is_lost(folder, client):
    asking = threading.Semaphore(0)

    def ask():
        """Answers, until there have been five of the new version."""
        found = []
        for _ in range(100_000):
            if found.count(7.0) == 5:
                break
            [[first, _]] = shifted(client, [0, 0])
            found.append(first)
            asking.release()
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask) for _ in range(4)]
        for _ in range(20):
            asking.acquire(timeout=30)
        export_model(folder, 2, added=7.0)
        for one in asked:
            found = one.result(60)
            assert {*found} <= {1.0, 7.0} and found == sorted(found)
    assert client.get(f"{SHIFT}/versions/1").status_code == 404


def test_a_label_keeps_its_version(folder):
    export_model(folder, 2, added=7.0)
    model = ServedModel(folder, {"stable": 1})
    with TestClient(make_application([model])) as client:
        assert shifted(client, [0, 0]) == [[7, 7]]
        assert shifted(client, [0, 0], place="/labels/stable") == [[1, 1]]
        assert shifted(client, [0, 0], place="/versions/1") == [[1, 1]]
        status = client.get(f"{SHIFT}/labels/stable").json()["model_version_status"]
        assert [one["version"] for one in status] == ["1"]
    export_model(folder, 3, added=9.0)
    assert model.refresh() == 3
    assert sorted(model.loaded.versions) == [1, 3]
    with pytest.raises(ValueError, match="a version in .*Received: old=8"):
        ServedModel(folder, {"old": 8})


def test_a_version_that_was_changed_is_not_loaded(folder):
    model = ServedModel(folder)
    path = export_model(folder, 2, added=7.0)
    (path / "fingerprint.pb").write_bytes(b"another")
    assert model.refresh() is None
    assert model.loaded.newest == 1 and "fingerprint.pb is changed" in model.failed[2]
    again = ServedModel(folder)  # Nor by a server that is started now.
    assert again.loaded.newest == 1 and "fingerprint.pb is changed" in again.failed[2]
    shutil.rmtree(folder / "1")
    with pytest.raises(ExportError, match="fingerprint.pb is changed"):
        ServedModel(folder)


def test_a_version_is_loaded_once_its_last_file_is_there(folder):
    """Also where that file was written within the resolution of the clock."""
    model = ServedModel(folder)
    path = export_model(folder, 2, added=7.0)
    sums, away = path / "SHA256SUMS", folder / "away"
    sums.rename(away)
    for file in (away, *path.rglob("*")):
        os.utime(file, (0, 0))
    assert model.refresh() is None and "no checksums" in model.failed[2]
    away.rename(sums)
    for file in path.rglob("*"):
        os.utime(file, (0, 0))
    assert model.refresh() == 2


def test_the_folder_is_followed_to_lower_numbers_and_the_same_ones(folder):
    export_model(folder, 2, added=7.0)
    model = ServedModel(folder)
    assert model.refresh() is None
    for _ in range(2):  # Away, and back with the same files.
        away = (folder / "2").rename(folder.parent / "away")
        assert model.refresh() == 1 and sorted(model.loaded.versions) == [1]
        assert model.refresh() is None
        away.rename(folder / "2")
        assert model.refresh() == 2 and sorted(model.loaded.versions) == [2]
    shutil.rmtree(folder / "2")
    assert model.refresh() == 1 and sorted(model.loaded.versions) == [1]
    assert model.refresh() is None
    shutil.rmtree(folder / "1")
    assert model.refresh() is None and model.loaded.newest == 1  # It goes on.
    export_model(folder, 1, added=9.0)  # A run that was trained again.
    assert model.refresh() == 1 and model.refresh() is None
    call = model.loaded.versions[1].endpoints["shift"].call
    assert call({"values": np.zeros([1, 2], np.float32)})["shifted"].tolist() == [
        [9, 9]
    ]


def test_a_folder_without_versions_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="kgen export run"):
        ServedModel(tmp_path / "run")


def test_hostile_requests_leave_the_server_as_it_was(client):
    rng = np.random.default_rng(0)
    for index in range(300):
        kind = index % 3
        if kind == 0:
            body = rng.bytes(int(rng.integers(0, 200)))
        elif kind == 1:
            body = json.dumps({"inputs": rng.integers(-5, 5, 3).tolist()}).encode()
        else:
            body = b"[" * int(rng.integers(1, 5000))
        assert client.post(f"{SHIFT}:predict", content=body).status_code == 400
    assert shifted(client, [1, 2]) == [[2, 3]]
