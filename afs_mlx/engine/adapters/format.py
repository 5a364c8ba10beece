"""The MLX adapter folder as mlx-lm loads it, adapter_config.json and adapters.safetensors, and its check before that.

Our own facts stand under the key "afs", which mlx-lm ignores. Knows nothing of training or of the catalog.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from afs_mlx.core.config import validate
from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import atomic_path, read_json, write_json
from afs_mlx.engine.adapters.linears import BaseLinears, base_linears, wrong_base
from afs_mlx.engine.adapters.tensors import FloatArray, Header, Tensor, not_finite, read_tensors
from afs_mlx.engine.tensor_files import stream_tensors, write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
FIX = "train or convert it again, or copy the folder whole"
LEAF = re.compile(r"(?P<path>.+)\.(?P<leaf>lora_[ab]|m)")
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
    rslora: bool = False
    expert: str = ""
    origin: str = ""


class AdapterConfig(BaseModel):
    """adapter_config.json; mlx-lm wraps the last `num_layers` blocks, all of them for 0 or less. Other keys stay.

    DoRA has a third tensor `m` (out,) in each layer: the length that each row of W + scale · (a·b)ᵀ is scaled to.
    "full" holds whole weights by their names in the model; its rank and scale say what was merged into them.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    fine_tune_type: Literal["lora", "dora", "full"] = "lora"
    num_layers: int
    lora_parameters: LoraParameters
    afs: AdapterFacts = AdapterFacts()

    @property
    def alpha(self) -> float:
        """The field's alpha; scale · rank where nobody noted it."""
        return self.lora_parameters.scale * self.lora_parameters.rank if self.afs.alpha is None else self.afs.alpha

    @classmethod
    def read(cls, folder: Path, *, full: bool = False) -> Self:
        """Read a folder's config; raises AfsError for what mlx-lm could not load, whole weights only if `full`."""
        path = folder / CONFIG
        if not folder.is_dir():
            raise MissingError("there is no such adapter folder", str(folder), "check the path")
        if not path.is_file():
            raise MissingError(f"not an adapter: it has no {CONFIG}", str(folder), FIX)
        value = read_json(path, "the adapter's config")
        if "peft_type" in value:
            raise AfsError("this is a PEFT adapter", str(folder), f"run: afs-mlx convert {folder}")
        kind = value.get("fine_tune_type", "lora")
        if kind == "full" and not full:
            what = "this adapter holds whole weights (fine_tune_type 'full'); this needs the factors of a LoRA or DoRA"
            raise AfsError(what, str(path), "use the adapter it was converted from, or run it as it is")
        return validate(cls, value, str(path))

    def write(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))


def check_adapter_folder(folder: Path, base_folder: Path | None = None) -> None:
    """Check an adapter, with `base_folder` that it fits too, before mlx reads it; one AfsError lists every problem."""
    config = AdapterConfig.read(folder, full=True)
    path = folder / WEIGHTS
    tensors = read_tensors(path, FIX)
    if found := [f"{name}: {problem}" for name, tensor in tensors.items() if (problem := tensor.problem())]:
        raise problems(found, "bad tensors", str(path), FIX)
    pairs, found = _pairs(tensors, config)
    if found := found + _lost_magnitudes(tensors, pairs, config):
        raise problems(found, "this does not match its adapter_config.json", str(path), FIX)
    if base_folder is not None:
        base = base_linears(base_folder)
        if config.fine_tune_type == "full":
            found = whole_problems(tensors, base)
        found += fit_problems({path: (b[1], a[0]) for path, (a, b) in pairs.items()}, base)
        found += _out_of_range(pairs, config, base.layers)
        if config.fine_tune_type == "dora":
            found += dora_problems(pairs, base)
        if found:
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


def dora_problems(paths: Iterable[str], base: BaseLinears) -> list[str]:
    """Layers that mlx-lm cannot put DoRA on: it counts their inputs as 32 // bits for each packed integer."""
    return [
        f"{path}: mlx-lm has no DoRA on {base.bits[path]}-bit weights; use the original, a 4-bit or an 8-bit base"
        for path in paths
        if path in base.bits and 32 % base.bits[path]
    ]


def whole_problems(tensors: Mapping[str, Header], base: BaseLinears) -> list[str]:
    """What keeps whole weights, by their names in mlx-lm, from standing in for the base's own."""
    found = []
    for name, tensor in tensors.items():
        own = base.parameters.get(name)
        if own is None or (base.tied and name == "lm_head.weight"):
            tied = ", whose output layer is its embeddings" if base.tied and name.startswith("lm_head.") else ""
            found.append(f"{name}: mlx-lm has no such parameter in this base{tied}")
        elif not own.is_float:
            found.append(f"{name}: quantised in this base; only the unquantised one can take whole weights")
        elif own.shape != tensor.shape:
            found.append(f"{name}: shape {list(tensor.shape)}, the base has {list(own.shape)}")
    return found


def write_adapter(folder: Path, tensors: dict[str, np.ndarray[Any, Any]], config: AdapterConfig) -> None:
    """Write both files as float32, each whole or absent, the config last; other files in the folder stay.

    Raises AfsError if the tensors could not be loaded again (names, shapes, NaN): a broken adapter is never written.
    """
    floats = {name: _float32(array) for name, array in tensors.items()}
    headers = {name: Header("F32", array.shape) for name, array in floats.items()}
    found = [f"{name}: {problem}" for name, header in headers.items() if (problem := header.form_problem())]
    found += [f"{name}: {problem}" for name, array in floats.items() if array.size and (problem := not_finite(array))]
    found += _pairs(headers, config)[1]
    if found:
        raise problems(found, "this adapter is not written", str(folder), "lower the learning rate or mend the source")
    # Nested, so that both are complete before either gets its name.
    with atomic_path(folder / CONFIG) as config_path, atomic_path(folder / WEIGHTS) as weights_path:
        config.write(config_path)
        write_tensors(weights_path, floats, {"format": "mlx"})


def stream_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], arrays: Iterator[FloatArray], config: AdapterConfig
) -> None:
    """As `write_adapter`, one tensor at a time: `arrays` yields them in the order of `shapes` and may raise.

    They are checked by their shapes alone: that they are finite is the caller's to see to.
    """
    if found := _pairs({name: Header("F32", shape) for name, shape in shapes.items()}, config)[1]:
        raise problems(found, "this adapter is not written", str(folder), "mend the source")
    with atomic_path(folder / CONFIG) as config_path, atomic_path(folder / WEIGHTS) as weights_path:
        config.write(config_path)
        stream_tensors(weights_path, shapes, arrays, {"format": "mlx"})


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


def _pairs(tensors: Mapping[str, Header], config: AdapterConfig) -> tuple[dict[str, Pair], list[str]]:
    """Each adapted layer's shapes (a, b), and what is wrong with names, ranks and coverage."""
    keys, leaves_of = config.lora_parameters.keys, ("lora_a", "lora_b")
    allowed = (*leaves_of, "m") if config.fine_tune_type == "dora" else leaves_of
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    pairs: dict[str, Pair] = {}
    found = [] if tensors else ["it holds no tensors"]
    if config.fine_tune_type == "full":
        return pairs, found + [f"{name}: not a whole weight" for name in tensors if ".lora_" in name]
    for name, tensor in tensors.items():
        match = LEAF.fullmatch(name)
        if match and match["leaf"] in allowed:
            shapes.setdefault(match["path"], {})[match["leaf"]] = tensor.shape
        else:
            found.append(f"{name}: not a {'DoRA' if len(allowed) == 3 else 'LoRA'} tensor")
    for path, leaves in shapes.items():
        block = BLOCK.fullmatch(path)
        if problem := _pair_problem(leaves, config.lora_parameters.rank):
            found.append(f"{path}: {problem}")
        elif keys is not None and path not in keys and (block is None or block["key"] not in keys):
            found.append(f"{path}: not among lora_parameters.keys")
        else:
            pairs[path] = (leaves["lora_a"], leaves["lora_b"])
    return pairs, found


def _pair_problem(leaves: dict[str, tuple[int, ...]], rank: int) -> str:
    """What is wrong with one layer's shapes; `m` may be absent, mlx-lm then takes the base's own lengths."""
    if missing := {"lora_a", "lora_b"} - leaves.keys():
        return f"{', '.join(leaves)} stands alone, without {', '.join(sorted(missing))}"
    a, b = leaves["lora_a"], leaves["lora_b"]
    if len(a) != 2 or len(b) != 2 or a[1] != rank or b[0] != rank:
        return f"lora_a {list(a)} and lora_b {list(b)} are not (in, {rank}) and ({rank}, out)"
    if leaves.get("m", b[1:]) != b[1:]:
        return f"m {list(leaves['m'])} is not ({b[1]},)"
    return ""


def _lost_magnitudes(tensors: Mapping[str, Tensor], paths: Iterable[str], config: AdapterConfig) -> list[str]:
    """DoRA layers that change the base and have lost their `m`."""
    if config.fine_tune_type != "dora":
        return []
    missing = [path for path in paths if f"{path}.m" not in tensors]
    return [f"{path}: m is missing" for path in missing if tensors[f"{path}.lora_b"].floats().any()]
