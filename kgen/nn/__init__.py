"""Networks, losses, randomness and optimization on tensors, shared by the models."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=[
        "adversarial",
        "flows",
        "gradients",
        "image_networks",
        "likelihoods",
        "per_example",
        "random",
    ],
    submod_attrs={
        "gradients": ["Adam", "MeanGradient"],
        "per_example": ["PerExampleGradient"],
    },
)
