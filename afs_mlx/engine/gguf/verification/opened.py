"""The file as the gguf package reads it, and the model folder that it was made from, side by side."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, ReaderTensor

from afs_mlx.core.files import read_json
from afs_mlx.engine.gguf.source import Packed, Stored, open_weights

type Order = np.ndarray[Any, np.dtype[np.int64]]

ROPE_FACTORS = "rope_freqs.weight"  # made from config.json


class UnreadableError(Exception):
    """The gguf package cannot read the file; the text says why."""


@dataclass(frozen=True)
class Opened:
    """`tensors` and `fields` of the file; `sources` by GGUF name, from upstream's own name table, not from ours."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]
    config: Mapping[str, Any]
    folder: Path
    sources: Mapping[str, Stored | Packed]

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", True))

    def order(self, name: str, rows: int) -> Order | None:
        """The row of the source for each row of the tensor, None where they keep their order.

        llama.cpp's Llama rotates neighbouring rows of q and k, Hugging Face the two halves of a head; the formula is
        upstream's `permute`.
        """
        part = name.split(".")[-2]
        if self.architecture != "llama" or part not in ("attn_q", "attn_k"):
            return None
        heads = int(self.config["num_attention_heads"])
        if part == "attn_k":
            heads = int(self.config.get("num_key_value_heads") or heads)
        return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def open_both(path: Path, folder: Path) -> Opened:
    """Headers only. Raises UnreadableError for the file, AfsError for the folder."""
    config = read_json(folder / "config.json", "the model's configuration")
    weights = open_weights(folder, config)
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, struct.error) as error:
        raise UnreadableError(f"the file cannot be read: {str(error) or type(error).__name__}") from error
    return Opened(fields, tensors, config, folder, _by_gguf_name(weights, config))


def _by_gguf_name(weights: Mapping[str, Stored | Packed], config: Mapping[str, Any]) -> dict[str, Stored | Packed]:
    """What every loader drops is left out: an output that is tied, and tables that are computed."""
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[str(config["model_type"])], int(config["num_hidden_layers"]))
    found: dict[str, Stored | Packed] = {}
    for name, weight in weights.items():
        tied = name.startswith("lm_head.") and config.get("tie_word_embeddings", True)
        if not tied and "rotary_emb.inv_freq" not in name:
            found[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = weight
    return found
