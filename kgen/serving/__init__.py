"""What answers requests from an export: the server of a laptop."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "application": ["make_application"],
        "connections": ["BoundedProtocol"],
        "models": ["ServedModel"],
    },
)
