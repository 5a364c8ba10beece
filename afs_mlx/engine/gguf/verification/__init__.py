"""Proof that an exported GGUF is what its model folder is, by reading it again and by running it in llama.cpp.

`verifying` runs the checks: `structure` and `weights` read the file, `text_checks` and `agreement` ask llama.cpp
(`llama`, in a process of its own) and hold it against mlx in float32 (`reference`). What may differ, and by how much,
stands in `tolerances`.
"""

from afs_mlx.engine.gguf.verification.verifying import demand, verify_gguf

__all__ = ["demand", "verify_gguf"]
