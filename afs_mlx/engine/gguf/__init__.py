"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

`layouts` names the tensors, `shape` and `scaling` read config.json, `vocabulary` the tokenizer, `source` the weights;
`mixes` says which type each tensor gets, `encoding` makes its bytes, `tensors` does so piece by piece, `writer` puts
all together with the `metadata`, and `header` reads it back. What has no entry in a table is refused: a GGUF that is
wrong still loads, and answers nonsense.
"""

from afs_mlx.engine.gguf.tensors import FileType
from afs_mlx.engine.gguf.writer import GgufReport, export_gguf

__all__ = ["FileType", "GgufReport", "export_gguf"]
