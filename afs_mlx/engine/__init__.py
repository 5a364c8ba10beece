"""The only code that imports mlx: bases, training, adapters, fusing, GGUF and inference.

Importing this package loads OpenBLAS on Linux, which has to happen before the first `import mlx`; it imports no mlx
itself.
"""

from afs_mlx.engine.blas import preload_openblas

OPENBLAS = preload_openblas()
