"""Server of exported models for one machine."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "handlers": ["make_application"],
        "connections": ["BoundedProtocol"],
        "versions": ["ServedModel"],
    },
)
