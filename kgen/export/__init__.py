"""Exports: models as files for other runtimes, verified before they are kept."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "manifest": ["ExportError", "check_sums"],
        "onnx_file": ["to_onnx"],
        "onnx_session": ["OnnxSession", "session_of_run"],
        "verification": ["Export", "Verification"],
        "saved_model": ["to_saved_model"],
        "triton": ["to_triton"],
    },
)
