"""The MLX adapter folder as mlx-lm loads it, adapter_config.json and adapters.safetensors, and its check before that.

Our own facts stand under the key "afs", which mlx-lm ignores. Knows nothing of training or of the catalog.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from afs_mlx.core.config import validate
from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import atomic_path, read_json, write_json
from afs_mlx.engine.adapters.linears import BaseLinears, base_linears, wrong_base
from afs_mlx.engine.adapters.tensors import FloatArray, Tensor, read_tensors
from afs_mlx.engine.tensor_files import write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
FIX = "train or convert it again, or copy the folder whole"
LEAF = re.compile(r"(?P<path>.+)\.(?P<leaf>lora_[ab])")
BLOCK = re.compile(r"(?:.+?\.)?layers\.(?P<layer>\d+)\.(?P<key>.+)")


class LoraParameters(BaseModel):
    """mlx-lm's `lora_parameters`: the update of a linear layer is scale · x·a·b, a (in, rank), b (rank, out).

    `keys` are paths within a block, whole paths for layers outside the blocks; None is every linear layer of a block.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    rank: int = Field(ge=1)
    scale: float
    dropout: float = Field(ge=0, lt=1)
    keys: tuple[str, ...] | None = None


class AdapterBase(BaseModel):
    """The base an adapter belongs to: the repository or folder it met, its lineage's catalog id, weights, sizes."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    id: str = ""
    lineage: str = ""
    sha256: str = ""
    shapes: dict[str, int | str] = Field(default_factory=dict)


class AdapterFacts(BaseModel):
    """What we note about an adapter beyond mlx-lm's needs; keys of a newer version are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    base: AdapterBase = AdapterBase()
    alpha: float | None = None
    expert: str = ""
    origin: str = ""


class AdapterConfig(BaseModel):
    """adapter_config.json; mlx-lm wraps the last `num_layers` blocks, all of them for 0 or less. Other keys stay."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    fine_tune_type: Literal["lora"] = "lora"
    num_layers: int
    lora_parameters: LoraParameters
    afs: AdapterFacts = AdapterFacts()

    @property
    def alpha(self) -> float:
        """The field's alpha; scale · rank where nobody noted it."""
        return self.lora_parameters.scale * self.lora_parameters.rank if self.afs.alpha is None else self.afs.alpha

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's config; raises AfsError for what mlx-lm could not load and, by name, for what we do not."""
        path = folder / CONFIG
        if not folder.is_dir():
            raise MissingError("there is no such adapter folder", str(folder), "check the path")
        if not path.is_file():
            raise MissingError(f"not an adapter: it has no {CONFIG}", str(folder), FIX)
        value = read_json(path, "the adapter's config")
        if "peft_type" in value:
            raise AfsError("this is a PEFT adapter", str(folder), f"run: afs-mlx convert {folder}")
        kind = value.get("fine_tune_type", "lora")
        if kind in ("dora", "full"):
            raise AfsError(f"fine_tune_type {kind!r} is not supported, only LoRA", str(path), "train a LoRA adapter")
        return validate(cls, value, str(path))

    def write(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))


def check_adapter_folder(folder: Path, base_folder: Path | None = None) -> None:
    """Check an adapter, with `base_folder` that it fits too, before mlx reads it; one AfsError lists every problem."""
    config = AdapterConfig.read(folder)
    path = folder / WEIGHTS
    tensors = read_tensors(path, FIX)
    if found := [f"{name}: {problem}" for name, tensor in tensors.items() if (problem := tensor.problem())]:
        raise problems(found, "bad tensors", str(path), FIX)
    pairs, found = _pairs(tensors, config)
    if found:
        raise problems(found, "this does not match its adapter_config.json", str(path), FIX)
    if base_folder is not None:
        base = base_linears(base_folder)
        found = fit_problems({path: (b[1], a[0]) for path, (a, b) in pairs.items()}, base)
        if found := found + _out_of_range(pairs, config, base.layers):
            raise wrong_base(found, "the adapter does not fit this base", folder, base)


def fit_problems(shapes: dict[str, tuple[int, int]], base: BaseLinears) -> list[str]:
    """What keeps adapted layers, path → (out, in), from fitting a base."""
    found = []
    for path, shape in shapes.items():
        expected = base.shapes.get(path)
        block = BLOCK.fullmatch(path)
        if expected is None and block and int(block["layer"]) >= base.layers:
            found.append(f"{path}: the base has {base.layers} blocks")
        elif expected is None:
            found.append(f"{path}: the base has no such linear layer")
        elif expected != shape:
            found.append(f"{path}: made for (out, in) = {shape}, the base has {expected}")
    return found


def write_adapter(folder: Path, tensors: dict[str, np.ndarray[Any, Any]], config: AdapterConfig) -> None:
    """Write both files as float32, each whole or absent, the config last; other files in the folder stay.

    Raises AfsError if the tensors could not be loaded again (names, shapes, NaN): a broken adapter is never written.
    """
    floats = {name: _float32(array) for name, array in tensors.items()}
    checked = {name: Tensor("F32", array.shape, array.tobytes()) for name, array in floats.items()}
    found = [f"{name}: {problem}" for name, tensor in checked.items() if (problem := tensor.problem())]
    found += _pairs(checked, config)[1]
    if found:
        raise problems(found, "this adapter is not written", str(folder), "lower the learning rate or mend the source")
    # Nested, so that both are complete before either gets its name.
    with atomic_path(folder / CONFIG) as config_path, atomic_path(folder / WEIGHTS) as weights_path:
        config.write(config_path)
        write_tensors(weights_path, floats, {"format": "mlx"})


def _float32(array: np.ndarray[Any, Any]) -> FloatArray:
    """A contiguous copy: save_file writes a transposed view's memory as it lies."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _out_of_range(paths: Iterable[str], config: AdapterConfig, layers: int) -> list[str]:
    """Layers that mlx-lm would not wrap, so that it could not load their tensors."""
    count, keys = config.num_layers, config.lora_parameters.keys or ()
    first = layers - count if 0 < count < layers else 0
    blocks = ((path, BLOCK.fullmatch(path)) for path in paths if path not in keys)
    return [
        f"{path}: below the last {count} blocks, which num_layers limits it to"
        for path, block in blocks
        if block and int(block["layer"]) < first
    ]


type Pair = tuple[tuple[int, ...], tuple[int, ...]]


def _pairs(tensors: dict[str, Tensor], config: AdapterConfig) -> tuple[dict[str, Pair], list[str]]:
    """Each adapted layer's shapes (a, b), and what is wrong with names, ranks and coverage."""
    rank, keys = config.lora_parameters.rank, config.lora_parameters.keys
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    pairs: dict[str, Pair] = {}
    found = [] if tensors else ["it holds no tensors"]
    for name, tensor in tensors.items():
        if match := LEAF.fullmatch(name):
            shapes.setdefault(match["path"], {})[match["leaf"]] = tensor.shape
        else:
            found.append(f"{name}: not a LoRA tensor")
    for path, leaves in shapes.items():
        block = BLOCK.fullmatch(path)
        if len(leaves) != 2:
            found.append(f"{path}: {', '.join(leaves)} stands alone")
            continue
        a, b = leaves["lora_a"], leaves["lora_b"]
        if len(a) != 2 or len(b) != 2 or a[1] != rank or b[0] != rank:
            found.append(f"{path}: lora_a {list(a)} and lora_b {list(b)} are not (in, {rank}) and ({rank}, out)")
        elif keys is not None and path not in keys and (block is None or block["key"] not in keys):
            found.append(f"{path}: not among lora_parameters.keys")
        else:
            pairs[path] = (a, b)
    return pairs, found
