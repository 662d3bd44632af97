"""What answers requests from an export: TensorFlow Serving's REST API on a laptop."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "application": ["make_application"],
        "models": ["ServedModel"],
    },
)
