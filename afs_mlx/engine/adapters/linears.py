"""What a base accepts: the linear layers of a model folder with their true shapes, read from headers alone.

Knows nothing of adapters, and nothing of catalog names: which base belongs to which lineage is the caller's.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import read_json
from afs_mlx.engine.adapters.tensors import Header, Tensor, read_headers, read_tensors

SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
INDEX = "model.safetensors.index.json"
EMBEDDINGS = ("embed_tokens", "wte")
FIX = "pull or build the base again; it is incomplete"


@dataclass(frozen=True)
class BaseLinears:
    """A base as adapters see it: its identity, its number of blocks and, by path, each linear layer's (out, in).

    `bits` are those of quantised layers, `parameters` all tensors of its files; a tied base has no output layer.
    """

    folder: Path
    identity: dict[str, Any]
    layers: int
    shapes: dict[str, tuple[int, int]]
    bits: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, Header] = field(default_factory=dict)
    tied: bool = False


def base_identity(base_folder: Path) -> dict[str, Any]:
    """The base's architecture and sizes from its config.json; equal for every repack of one model."""
    return _identity(_config(base_folder))


def base_linears(base_folder: Path) -> BaseLinears:
    """Read a model folder's linear layers; quantised ones are given by the shape they stand for. Raises AfsError."""
    config = _config(base_folder)
    headers: dict[str, Header] = {}
    for shard in _shards(base_folder):
        headers |= read_headers(shard, FIX)
    tied = bool(config.get("tie_word_embeddings", True))  # mlx-lm's default for qwen2 and llama
    shapes: dict[str, tuple[int, int]] = {}
    bits: dict[str, int] = {}
    found = []
    for name, header in headers.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(header.shape) != 2 or path.endswith(EMBEDDINGS) or (tied and path == "lm_head"):
            continue
        try:
            settings = _quantisation(config, path)
            shapes[path] = _true_shape(path, headers, settings)
            if header.dtype == "U32":
                bits[path] = settings["bits"]
        except ValueError as error:
            found.append(f"{name}: {error}")
    if found:
        raise problems(found, "these weights do not fit the base's config", str(base_folder), FIX)
    return BaseLinears(base_folder, _identity(config), int(config["num_hidden_layers"]), shapes, bits, headers, tied)


def base_tensors(base_folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder by name; numbers are read when asked for."""
    return {name: tensor for shard in _shards(base_folder) for name, tensor in read_tensors(shard, FIX).items()}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(
            "not a model folder: it has no config.json", str(folder), "give the folder of a pulled or built base"
        )
    config = read_json(path, "the base's config")
    if not isinstance(config.get("quantization") or {}, dict):
        raise AfsError("the base's quantization is not a table", str(path), FIX)
    wrong = [key for key in SHAPE_KEYS if key in config and (type(config[key]) is not int or config[key] < 1)]
    missing = [key for key in ("model_type", "hidden_size", "num_hidden_layers") if key not in config]
    if wrong or missing:
        found = [f"{key}: not a positive whole number" for key in wrong] + [f"{key}: missing" for key in missing]
        raise problems(found, "the base's config is not that of a language model", str(path), FIX)
    return config


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": config["model_type"]} | {key: config[key] for key in SHAPE_KEYS if key in config}


def _shards(folder: Path) -> list[Path]:
    """The weight files mlx-lm would load; raises if the index names one that is not there."""
    shards = sorted(folder.glob("model*.safetensors"))
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, "the base's index").get("weight_map")
        if not isinstance(weight_map, dict):
            raise AfsError("the base's index has no weight_map", str(folder / INDEX), FIX)
        named = set(map(str, weight_map.values()))
        if absent := sorted(named - {shard.name for shard in shards}):
            raise MissingError(f"half a download: {', '.join(absent)} missing", str(folder), FIX)
    if not shards:
        raise MissingError("the base has no model*.safetensors", str(folder), FIX)
    return shards


def _quantisation(config: dict[str, Any], path: str) -> dict[str, Any]:
    """mlx-lm's settings for one layer: its own table where it has one, else the model's."""
    settings = config.get("quantization") or config.get("quantization_config") or {}
    own = settings.get(path)
    return {**settings, **own} if isinstance(own, dict) else settings


def _true_shape(path: str, headers: dict[str, Header], settings: dict[str, Any]) -> tuple[int, int]:
    """(out, in) of a linear; packed weights are uint32 with 32 / bits numbers each and one scale per group."""
    weight = headers[f"{path}.weight"]
    rows, columns = weight.shape
    if weight.dtype in ("F64", "F32", "F16", "BF16"):
        return rows, columns
    scales = headers.get(f"{path}.scales")
    if weight.dtype != "U32" or scales is None:
        raise ValueError(f"type {weight.dtype} is no format that mlx runs; use the original or an mlx repack")
    group, bits = settings.get("group_size"), settings.get("bits")
    if type(group) is not int or type(bits) is not int:
        raise ValueError("quantised, but config.json gives no group_size and bits")
    inputs = scales.shape[-1] * group
    if inputs * bits != columns * 32:
        raise ValueError(f"{columns} columns and {scales.shape[-1]} scales are not {bits} bits in groups of {group}")
    return rows, inputs


def wrong_base(found: list[str], what: str, where: Path, base: BaseLinears) -> AfsError:
    """One error for everything about an adapter that does not fit a base, with the base's sizes."""
    sizes = ", ".join(f"{key} {value}" for key, value in base.identity.items())
    return problems(found, what, str(where), f"give the base it was trained on; {base.folder} is {sizes}")
