"""Training: devices, callbacks, checkpoints and the folder of a run."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "callbacks": [
            "HealthWarnings",
            "History",
            "Progress",
            "SampleGrid",
            "SampleText",
            "StopOnNonFinite",
            "TensorBoard",
        ],
        "checkpoints": ["Checkpointer"],
        "loop": ["fit"],
        "run_folders": ["RunFolder"],
        "strategies": [
            "check_same_run",
            "check_same_step",
            "distribute",
            "make_strategy",
            "barrier",
        ],
    },
)
