"""Generative models in Keras 3 on TensorFlow: train, look, measure, export."""

import lazy_loader as lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=[
        "data",
        "evaluation",
        "export",
        "models",
        "nn",
        "recipes",
        "training",
    ],
    submod_attrs={"models.shared.loading": ["load"]},
)
