"""Tell a lost GPU from a model's own fault: memory full, no driver, no device, a kernel that broke."""

from __future__ import annotations

# torch.OutOfMemoryError and torch.AcceleratorError, known by name so that nobody imports torch to ask.
KINDS = {"OutOfMemoryError", "AcceleratorError"}
SAYINGS = (
    "CUDA out of memory",
    "CUDA error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "no CUDA device",  # models.fitting.reproducible
    "torch finds no such GPU",  # models.fitting.require_device
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "not compiled with CUDA",
)


def lost_device(error: BaseException) -> str:
    """Return in one line why the GPU cannot go on; "" where the error, and what caused it, is of another kind.

    >>> lost_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    'RuntimeError: CUDA error: an illegal memory access was encountered'
    >>> lost_device(ValueError("other shapes")), lost_device(MemoryError())
    ('', '')
    """
    cause: BaseException | None = error
    while cause is not None:
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & KINDS or any(saying in str(cause) for saying in SAYINGS):
            return " ".join(f"{type(cause).__name__}: {cause}".split())
        cause = cause.__cause__
    return ""
