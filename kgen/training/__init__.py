"""Training: devices, callbacks, checkpoints and the folder of a run."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "callbacks": [
            "HealthWarnings",
            "History",
            "Progress",
            "Samples",
            "StopOnNonFinite",
            "TensorBoard",
        ],
        "checkpoints": ["Checkpointer"],
        "loop": ["fit"],
        "run_folders": ["RunFolder"],
        "strategies": [
            "barrier",
            "check_equal",
            "distribute",
            "make_strategy",
            "unoptimized_graphs",
        ],
    },
)
