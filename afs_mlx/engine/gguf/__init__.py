"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

`layouts` names the tensors, `shape` reads config.json, `vocabulary` the tokenizer, `source` the weights; `tensors`
encodes them and `writer` puts all together. What has no entry in a table is refused: a GGUF that is wrong still
loads, and answers nonsense.
"""

from afs_mlx.engine.gguf.tensors import FileType
from afs_mlx.engine.gguf.writer import GgufReport, export_gguf

__all__ = ["FileType", "GgufReport", "export_gguf"]
