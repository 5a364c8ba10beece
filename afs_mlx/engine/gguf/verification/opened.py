"""The file as it reads, and the model folder that it was made from, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json
from afs_mlx.engine.gguf.header import read_fields, read_tensor_infos
from afs_mlx.engine.gguf.source import Packed, Stored, open_weights

type Order = np.ndarray[Any, np.dtype[np.int64]]

ROPE_FACTORS = "rope_freqs.weight"  # made from config.json


class UnreadableError(Exception):
    """The file cannot be read; the text says why."""


@dataclass(frozen=True)
class FileTensor:
    """One tensor of the file; `data` are its bytes (mapped, not read), those of a row in the last axis."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Opened:
    """`tensors` and `fields` of the file; `sources` by GGUF name, from upstream's own name table, not from ours."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, FileTensor]
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
        fields, infos = read_fields(path), read_tensor_infos(path)
        whole = np.memmap(path, np.uint8, "r")
        tensors = {
            name: FileTensor(
                info.type,
                info.shape,
                whole[info.offset : info.offset + info.size_bytes].reshape(
                    quant_shape_to_byte_shape(info.shape, info.type)
                ),
            )
            for name, info in infos.items()
        }
    except (AfsError, ValueError, OSError) as error:
        said = error.what if isinstance(error, AfsError) else str(error)
        raise UnreadableError(f"the file cannot be read: {said or type(error).__name__}") from error
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
