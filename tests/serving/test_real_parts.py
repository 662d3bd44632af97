"""Exports in other runtimes and servers: `tox -e serving`.

Each part has a virtual environment of its own, made with pip in the folder that
KGEN_REAL_PARTS names, or in a temporary one. Tests of missing programs (g++, chromium)
are skipped.
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from code_blocks import code_blocks
from free_ports import free_port
from kgen.data import CharTokenizer
from kgen.export import to_onnx, to_saved_model, to_triton
from kgen.export.tensorflow_serving import WARM_UP
from kgen.export.verification import signatures_for
from kgen.models import GAN, GPT, VAE

pytestmark = pytest.mark.real
HERE = Path(__file__).parent / "real"
SEEDS = [0, 1, -5, 2**40 + 3]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return VAE(image_shape=(8, 8, 1), latent_dim=4, hidden_units=(32,))


@pytest.fixture(scope="module")
def images(model):
    return model.generate(SEEDS)


@pytest.fixture(scope="module")
def saved_model(model, tmp_path_factory):
    return to_saved_model(model, tmp_path_factory.mktemp("runs") / "vae").path


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    return to_onnx(model, tmp_path_factory.mktemp("runs") / "vae.onnx").path


@pytest.fixture(scope="module")
def writer():
    keras.utils.set_random_seed(0)
    return GPT(
        tokenizer=CharTokenizer.of_text("to be or not\n"),
        context=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
    )


@pytest.fixture(scope="module")
def saved_writer(writer, tmp_path_factory):
    return to_saved_model(writer, tmp_path_factory.mktemp("runs") / "gpt").path


@pytest.fixture(scope="session")
def environments(tmp_path_factory):
    """Makes an environment with some packages and returns its Python."""
    folder = os.environ.get("KGEN_REAL_PARTS")
    folder = Path(folder) if folder else tmp_path_factory.mktemp("environments")

    def make(name, *packages):
        python = folder / name / "bin" / "python"
        if not (folder / name / "done").exists():
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", *packages], check=True
            )
            (folder / name / "done").touch()
        return python

    return make


def values_of(command, **options):
    """Images of four seeds, from the numbers that a program prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = [float(word) for word in done.stdout.split()]
    return np.array(numbers, np.float32).reshape(4, 8, 8, 1)


def compare(received, expected):
    """Says how far images differ, and fails if it is too far."""
    print(f"images differ by at most {np.abs(received - expected).max():.1e}")
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5)


def test_tensorflow_from_cpp_without_python(saved_model, images, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    wheel = Path(tf.__file__).parent
    program = tmp_path / "generate"
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    subprocess.run(
        ["g++", "-w", "-std=c++17", HERE / "generate.cc", "-o", program]
        + [f"-I{wheel}/include", f"-L{wheel}", "-Wl,--no-as-needed", *libraries]
        + [f"-Wl,-rpath,{wheel}"],
        check=True,
    )
    received = values_of([program, saved_model, *map(str, SEEDS)])
    compare(received, images)


PRINT_IMAGES = """
import sys, tensorflow as tf
assert tf.__version__.startswith("2.20."), tf.__version__
generate = tf.saved_model.load(sys.argv[1]).signatures["generate"]
seeds = tf.constant([int(word) for word in sys.argv[2:]], tf.int64)
for value in generate(seeds=seeds)["images"].numpy().ravel():
    print(repr(float(value)))
"""


def test_the_tensorflow_of_the_newest_tensorflow_serving(
    saved_model, images, environments
):
    python = environments("tensorflow-2.20", "tensorflow==2.20.*")
    command = [python, "-c", PRINT_IMAGES, saved_model, *map(str, SEEDS)]
    received = values_of(command)
    compare(received, images)


RUN_ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
seeds = numpy.array([int(word) for word in sys.argv[2:]], numpy.int64)
[images] = session.run(["images"], {"seeds": seeds})
assert "tensorflow" not in sys.modules
for value in images.ravel():
    print(repr(float(value)))
"""


def test_onnxruntime_without_tensorflow(onnx_file, images, environments):
    python = environments("onnxruntime", "onnxruntime")
    received = values_of([python, "-c", RUN_ONNX, onnx_file, *map(str, SEEDS)])
    compare(received, images)


def test_torch_fidelity(environments, tmp_path):
    keras.utils.set_random_seed(0)
    python = environments("torch-fidelity", "torch", "torch-fidelity", "onnxruntime")
    weights = tmp_path / "untrained.pth"
    subprocess.run([python, HERE / "fidelity_weights.py", weights], check=True)
    for classes in (0, 3):
        gan = GAN(image_shape=(16, 16, 3), latent_dim=8, num_classes=classes or None)
        file = tmp_path / f"gan{classes}.onnx"
        to_onnx(gan, file, "decode", layout="nchw", dtype="uint8")
        words = f"--cpu --isc --json --silent --input1 {file} --input1-model-z-type"
        words += " normal --input1-model-z-size 8 --input1-model-num-samples 20"
        words += f" --input1-model-num-classes {classes}"
        words += f" --feature-extractor-weights-path {weights}"
        command = [python, "-c", FIDELITY, *words.split()]
        assert printed(command)["inception_score_mean"] > 0.99


# Of classes it says np.int, which NumPy 1.24 has removed.
FIDELITY = """
import numpy
numpy.int = int
from torch_fidelity.fidelity import main
main()
"""


READ_WARM_UP = """
import json, sys, tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
for record in tf.data.TFRecordDataset(sys.argv[1]):
    request = PredictionLog.FromString(record.numpy()).predict_log.request
    inputs = {k: tf.make_ndarray(v).shape for k, v in request.inputs.items()}
    print(json.dumps([request.model_spec.name, request.model_spec.signature_name,
                      inputs]))
"""


def test_the_classes_of_tensorflow_serving_read_the_warm_up(
    model, saved_model, tmp_path
):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        + ["--target", tmp_path, "tensorflow-serving-api"],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", READ_WARM_UP, saved_model / WARM_UP],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    requests = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["vae", "generate_png", {"seeds": [1]}] in requests
    names = [one.name for one in signatures_for(model, "saved_model")]
    assert [name for _, name, _ in requests] == names


@contextlib.contextmanager
def started(command, **options):
    """A server's address, for a command that takes its port as the last word."""
    port = free_port()
    process = subprocess.Popen([*map(str, command), str(port)], **options)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def served(*versions):
    """Starts kgen's own server on the runs of these versions."""
    runs = [version.parent for version in versions]
    program = "from kgen_cli.main import main; main()"
    return started(
        [sys.executable, "-c", program, "serve", *runs, "--embedded", "--port"]
    )


def printed(command, **options):
    """The JSON that a program prints."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def triton(onnx_file, environments, tmp_path):
    """The address of a Triton that serves the repository."""
    python = environments("triton", "numpy<2", "onnxruntime")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*download, "-d", tmp_path, "nvidia-pytriton"], check=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    server = tmp_path / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    backend = server / "backends" / "onnxruntime"
    backend.mkdir()
    shutil.copy(HERE / "triton_backend.py", backend / "model.py")
    for program in ("bin/tritonserver", f"backends/python/{stub.name}"):
        (server / program).chmod(0o755)
    to_triton(onnx_file, tmp_path / "repository")
    libraries = [tmp_path / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    packages = next((python.parent.parent / "lib").glob("*/site-packages"))
    command = [server / "bin" / "tritonserver", "--allow-grpc=false"]
    command += ["--allow-metrics=false", "--model-repository", tmp_path / "repository"]
    command += ["--backend-directory", server / "backends", "--http-port"]
    environment = os.environ | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(command, env=environment, **quiet) as address:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/v2/health/ready").close()
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        yield address


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a stub of Python 3.11")
def test_triton(triton, model):
    def ask(seeds):
        tensor = {"name": "seeds", "shape": [len(seeds), 1], "datatype": "INT64"}
        body = json.dumps({"inputs": [tensor | {"data": seeds}]}).encode()
        url = f"{triton}/v2/models/vae/infer"
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            [output] = json.load(answer)["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    seeds = [SEEDS[index % 4] + index for index in range(64)]
    parts = [seeds[start : start + 4] for start in range(0, 64, 4)]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        received = np.concatenate([*threads.map(ask, parts)])
    compare(received, model.generate(seeds))
    with urllib.request.urlopen(f"{triton}/v2/models/vae/stats") as answer:
        [stats] = json.load(answer)["model_stats"]
    assert stats["inference_count"] == 64
    assert stats["execution_count"] < 16  # It has put requests together.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A folder with what drives a browser, and the environment to do it in."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm, and chromium")
    folder = tmp_path_factory.mktemp("browser")
    packages = ["playwright-core", "onnxruntime-web"]
    command = ["npm", "install", "--silent", "--prefix", folder, *packages]
    subprocess.run(command, check=True)
    for name in ("page.mjs", "onnx.mjs"):
        shutil.copy(HERE / name, folder)
    (folder / "empty.html").write_text("<!doctype html><title>ONNX</title>")
    return folder, os.environ | {"CHROMIUM": chromium}


def test_onnxruntime_web_in_a_browser(browser, onnx_file, images):
    folder, environment = browser
    shutil.copy(onnx_file, folder / "vae.onnx")
    with started(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    ) as address:
        command = ["node", "onnx.mjs", address, *map(str, SEEDS)]
        received = values_of(command, cwd=folder, env=environment)
    compare(received, images)


def test_the_page_in_a_browser(browser, saved_model, saved_writer, model, writer):
    folder, environment = browser
    with served(saved_model, saved_writer) as address:
        command = ["node", "page.mjs", address, folder / "page.png"]
        found = printed(command, cwd=folder, env=environment)
    assert found["errors"] == [] and not found["wide"]
    files = [base64.b64decode(one.partition(",")[2]) for one in found["files"]]
    pixels = np.array([tf.io.decode_png(file).numpy() for file in files])
    off = np.abs(pixels - np.round(255 * model.generate([0, 1, 2])))
    print(f"of the pixels {(off > 0).mean():.2%} are off by one")
    assert off.max() <= 1 and (off > 0).mean() <= 0.01
    text = writer.generate("to be", max_new_tokens=30, seeds=7, temperature=0.8)
    assert found["text"] == "to be" + text


def test_the_client_of_openai(saved_writer, writer, environments):
    python = environments("openai", "openai")
    with served(saved_writer) as address:
        found = printed([python, HERE / "openai_client.py", address, "gpt"])
    settings = {"max_new_tokens": 40, "temperature": 0.8, "top_k": 5}
    prompts = ["to be", "to be", "or", "or"]
    texts = writer.generate(prompts, seeds=[3, 4, 5, 6], **settings)
    assert found["models"] == ["gpt"] and found["model"]["id"] == "gpt"
    assert found["model"]["created"] == int(
        (saved_writer / "saved_model.pb").stat().st_mtime
    )
    assert found["texts"] == found["streamed"] == texts
    assert found["reasons"] == found["streamed reasons"] == ["length"] * 4
    assert found["usage"] == found["streamed usage"]
    assert found["usage"]["prompt_tokens"] == 7
    assert found["usage"]["completion_tokens"] == 160
    stopped = writer.generate(["to be", "or"], seeds=[3, 4], stop="t", **settings)
    assert found["stopped"] == [[text, "stop"] for text in stopped]
    names = {name: error[0] for name, error in found["errors"].items()}
    assert names.pop("no model") == names.pop("chat") == "NotFoundError"
    assert set(names.values()) == {"BadRequestError"} and len(names) == 3


def test_the_example_of_the_openai_client(saved_writer, writer, environments):
    blocks = code_blocks("docs/serve.md", "python")
    [example] = [block for block in blocks if "import OpenAI" in block]
    example = example.replace("gpt-shakespeare", "gpt").replace("ROMEO:", "to be")
    with served(saved_writer) as address:
        example = example.replace("http://localhost:8501", address)
        command = [environments("openai", "openai"), "-c", example]
        text = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout
    settings = {"max_new_tokens": 200, "temperature": 0.8}
    assert text == writer.generate("to be", seeds=1, **settings)


def resident(process):
    """Megabytes that a process has in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ten_thousand_hostile_requests(saved_model, saved_writer):
    with served(saved_model, saved_writer) as address:
        port = address.rpartition(":")[2]
        [process] = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.read_bytes().endswith(f"--port\0{port}\0".encode())
        ]
        hostile = [sys.executable, HERE / "hostile.py", port]
        assert printed([*hostile, 2000, 1])["wrong"] == {}
        before = resident(process)
        found = printed([*hostile, 10_000, 2])
        time.sleep(5)
        after = resident(process)
        print(found["statuses"], f"{before:.0f} MB before, {after:.0f} after")
        assert found["wrong"] == {}
        assert after < 1.1 * before
        assert seeds_by_rest(address, [0]).shape == (1, 8, 8, 1)


def seeds_by_rest(address, seeds):
    """Pixels of the images that a server makes."""
    request = {"signature_name": "generate_png", "inputs": {"seeds": seeds}}
    url = f"{address}/v1/models/vae:predict"
    body = json.dumps(request).encode()
    with urllib.request.urlopen(url, body, timeout=60) as answer:
        files = json.load(answer)["outputs"]
    return np.array([tf.io.decode_png(base64.b64decode(one["b64"])) for one in files])


def test_a_version_takes_over_under_load(model, tmp_path):
    keras.utils.set_random_seed(1)
    other = VAE(image_shape=(8, 8, 1), latent_dim=4, hidden_units=(32,))
    folder = tmp_path / "vae"
    expected = [np.round(255 * one.generate([5])) for one in (model, other)]
    stop = threading.Event()

    def ask(address):
        found = []
        while not stop.is_set():
            pixels = seeds_by_rest(address, [5])
            [which] = [n for n, x in enumerate(expected) if abs(pixels - x).max() <= 1]
            found.append(which)
        return found

    with (
        served(to_saved_model(model, folder).path) as address,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        asked = [threads.submit(ask, address) for _ in range(8)]
        to_saved_model(other, folder)
        time.sleep(8)
        stop.set()
        answers = [one.result() for one in asked]  # An error would be raised here.
    print([len(found) for found in answers])
    for found in answers:
        assert set(found) == {0, 1} and found == sorted(found)
