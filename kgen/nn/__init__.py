"""What two or more models share: tensors in, tensors out."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=[
        "blocks",
        "flows",
        "gradients",
        "image_networks",
        "losses",
        "metrics",
        "random",
        "schedules",
    ],
)
