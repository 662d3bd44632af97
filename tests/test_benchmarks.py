"""The scripts in benchmarks/: they count what they say, and run on tiny data."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ONE_ROUND = ("--sides", "kgen", "--rounds", "1")


def load(name, monkeypatch):
    """A script as a module; its neighbours can be imported, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_lines_leave_out_docstrings_comments_and_blanks(monkeypatch):
    source = '''"""A module,

of two paragraphs."""
# A comment.

TEXT = """1 of 3
2 of 3
3 of 3"""
def function(  # 4
    x,  # 5
):  # 6
    """A docstring."""
    return x  # 7
'''
    assert load("code_lines", monkeypatch).code_lines(source) == 7


@pytest.mark.parametrize(
    ("name", "most"), [("VAE", 6), ("GAN", 8), ("GPT", 6), ("RecVAE", 7)]
)
def test_a_training_step_runs_in_few_modules(name, most, monkeypatch):
    step_modules = load("step_modules", monkeypatch)
    files = step_modules.modules_of_step(*step_modules.make_models()[name]())
    assert Path(f"models/{name.lower()}.py") in files
    assert Path("nn/gradients.py") in files
    assert len(files) <= most, files


def run(script, *words, folder=None):
    """The output of a script in a process of its own."""
    command = [sys.executable, BENCHMARKS / script, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def ratings(folder):
    """A CSV file in which 800 users have 5 of 30 items each."""
    rng = np.random.default_rng(0)
    rows = [f"{user},{item}" for user in range(800) for item in rng.permutation(30)[:5]]
    file = folder / "ratings.csv"
    file.write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "generate"])
def test_gpt_rates_run(what, tmp_path):
    letters = np.random.default_rng(0).integers(97, 110, 20_000).astype(np.uint8)
    (tmp_path / "text.txt").write_bytes(letters.tobytes())
    output = run("gpt_rates.py", what, tmp_path / "text.txt", *ONE_ROUND)
    assert "1  kgen " in output


@pytest.mark.slow
def test_multvae_training_rate_runs(tmp_path):
    output = run("multvae_training_rate.py", ratings(tmp_path), *ONE_ROUND)
    assert "users per second" in output


@pytest.mark.slow
def test_gan_training_rate_runs():
    assert "1  kgen " in run("gan_training_rate.py", *ONE_ROUND)


@pytest.mark.slow
def test_vae_training_rate_and_fit_overhead_run(test_data):
    data = ("--data-dir", test_data / "tfds")
    assert "1  kgen " in run("vae_training_rate.py", *data, *ONE_ROUND)
    output = run("fit_overhead.py", *data, "--rounds", "1")
    assert "outside the compiled step" in output


@pytest.mark.slow
def test_two_workers_run_beside_one_process():
    output = run("workers.py", "--rounds", "1", "vae", "--network", "mlp")
    assert "2 workers / one process" in output


@pytest.mark.slow
def test_recommender_scripts_run(tmp_path):
    words = ("multvae", "--data", ratings(tmp_path), "--epochs", "1")
    assert "ndcg@100" in run("recommender_seeds.py", "--seeds", "2", *words)
    output = run("recommend_at_scale.py", "--users", "2000", "--items", "300")
    assert "one request, exported" in output
