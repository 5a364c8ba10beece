"""A fast BLAS for mlx on Linux. Knows nothing of models."""

import ctypes
import sys

LIBRARY = "libopenblas.so.0"


def preload_openblas() -> str | None:
    """Load OpenBLAS so that its `cblas_*` win over the reference BLAS that mlx's Linux wheel is linked against.

    Must run before the first `import mlx`. Returns the library's name, None where there is none to load (then all is
    slow, not wrong). Never raises.
    """
    if not sys.platform.startswith("linux"):
        return None  # macOS has Accelerate
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    return LIBRARY
