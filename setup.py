"""Packaging: `kgen/` is installed as kgen, `cli/` as kgen_cli."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Returns the version that `kgen/__init__.py` states, without importing it."""
    text = (ROOT / "kgen" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


SERVE = [
    "starlette>=0.46",
    "uvicorn>=0.34",
    "httptools>=0.6",
    "uvloop>=0.21; sys_platform != 'win32'",
    "orjson>=3.10",
]

setup(
    name="kgen",
    version=read_version(),
    description=(
        "Generative models in Keras 3 on TensorFlow: train, measure, export, serve."
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["kgen", "kgen.*"]) + ["kgen_cli"],
    package_dir={"kgen": "kgen", "kgen_cli": "cli"},
    package_data={"kgen": ["py.typed", "evaluation/*.npz", "serving/*.html"]},
    entry_points={"console_scripts": ["kgen = kgen_cli.main:main"]},
    # CONTRIBUTING.md says what each of these is for.
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.13.2",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6.0",
        "numpy>=2.0",
        "click>=8.2",
        "lazy_loader>=0.4",
        "tf2onnx>=1.17",
        "onnx>=1.18",
        "onnxruntime>=1.22",
        "rich>=13.0",
        "pillow>=11.0",
        "scikit-learn>=1.5",
        "scipy>=1.15",
        "pyarrow>=18.0",
        "tensorboard>=2.20",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "text": ["tokenizers>=0.21", "sacrebleu>=2.5"],
        "serve": SERVE,
        "bench": ["torch==2.13.*"],
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7,<10",
            "mkdocstrings-python>=2.0,<3",
            "ruff>=0.17",
        ],
        "test": [
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "scikit-image>=0.25",
            "sacrebleu>=2.5",
            "tokenizers>=0.21",
            "setuptools>=77.0",
            "httpx2>=2.0",
            *SERVE,
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
