"""A run as the pages describe it: its files, its server, another process.

All commands and blocks of Python are run by test_docs.py.
"""

import base64
import concurrent.futures
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import kgen
from code_blocks import ROOT, code_blocks, commands
from free_ports import free_port
from kgen_cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run that the first command leaves, shortened to two epochs."""
    folder = tmp_path_factory.mktemp("reader")
    assert ["fit", "vae"] in commands("README.md")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["fit", "vae", "--epochs", "2"]) == 0
    return folder


def test_fit_leaves_every_file_of_the_table(folder):
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    names = [name for cell in names for name in re.findall(r"`([^`]+)`", cell)]
    names = names[: names.index("vae.onnx") + 1]
    assert len(names) == 12
    for name in names:
        assert (folder / "saved_models" / "vae" / name).exists(), name
    grid = folder / "saved_models" / "vae" / "samples" / "epoch-0002.png"
    with Image.open(grid) as image:
        assert image.size[0] > 64


def test_the_server_answers_until_it_is_ended(folder):
    [curl] = [block for block in code_blocks("docs/serve.md", "sh") if "curl" in block]
    words = shlex.split(curl[curl.index("curl") :])
    port = free_port()
    command = [sys.executable, "-c", "from kgen_cli.main import main; main()"]
    server = subprocess.Popen(
        [*command, "serve", "vae", "--port", str(port)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline().startswith("vae: version")
        url = words[-1].replace("8501", str(port))
        answer = json.loads(post(url, words[words.index("-d") + 1]))
        files = [base64.b64decode(one["b64"]) for one in answer["outputs"]]
        images = [np.array(Image.open(io.BytesIO(file))) for file in files]
        model = kgen.load(folder / "saved_models" / "vae")
        expected = np.round(255 * model.generate([0, 1]))[..., 0]
        assert np.abs(np.array(images) - expected).max() <= 1
        # Those under way are answered before it ends.
        many = json.dumps({"inputs": [*range(400)]})
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(post, url, many) for _ in range(8)]
            time.sleep(0.3)
            server.terminate()
            for one in asked:
                assert len(json.loads(one.result())["outputs"]) == 400
        assert server.wait(30) == -signal.SIGTERM
    finally:
        server.kill()
        server.communicate()


def post(url, body):
    """The answer, once the server is there."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, body.encode(), timeout=60) as answer:
                return answer.read()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def test_another_process_loads_the_model(folder):
    """A fresh interpreter: `import kgen` alone registers the classes of the file."""
    script = "import kgen; print(type(kgen.load('saved_models/vae').optimizer))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    shown = "<class 'kgen.nn.gradients.Adam'>\n"
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_resuming_a_finished_run_says_so(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run(["fit", "vae", "--epochs", "2", "--resume"]) == 0
    assert "nothing left to train" in capsys.readouterr().out


@pytest.mark.slow
def test_the_recommender_works(test_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = str(test_data / "data" / "movielens" / "ml-100k.zip")
    words = commands("docs/recommend.md")
    [recommend] = [one for one in words if one[0] == "recommend"]
    [evaluate] = [one for one in words if one[0] == "evaluate"]
    assert run(["fit", "multvae", "--data", source, "--epochs", "30"]) == 0
    capsys.readouterr()
    assert run(recommend) == 0
    assert "Return of the Jedi (1983)" in capsys.readouterr().out
    assert run(evaluate) == 0
    assert "EASE" in capsys.readouterr().out


@pytest.mark.slow
def test_text_generation_works(test_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = test_data / "data" / "tiny_shakespeare" / "input.txt"
    lines = source.read_text().split("\n")[:3000]
    (tmp_path / "input.txt").write_text("\n".join(lines))
    fit = ["fit", "gpt", "--preset", "shakespeare", "--data", "input.txt"]
    assert run([*fit, "--epochs", "1"]) == 0
    generate = next(
        words for words in commands("docs/text-gpt.md") if words[0] == "generate"
    )
    capsys.readouterr()
    assert run([*generate, "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith("ROMEO:")
    assert run(["evaluate", "gpt-shakespeare", "--limit", "5"]) == 0
    assert "bits_per_character" in capsys.readouterr().out
