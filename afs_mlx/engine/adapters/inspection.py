"""Any adapter folder, MLX's or PEFT's, read as settings and layers, and what can be said of each layer.

Without mlx and without the base. What a recorded base name means in the catalog is the caller's question.
"""

from dataclasses import dataclass, field
from pathlib import Path

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.core.files import read_json
from afs_mlx.engine.adapters.format import BLOCK, CONFIG, WEIGHTS, AdapterBase, AdapterConfig, check_adapter_folder
from afs_mlx.engine.adapters.peft_files import choose_adapter, weight_files
from afs_mlx.engine.adapters.peft_reading import read_peft
from afs_mlx.engine.adapters.tensors import Tensor, read_tensors
from afs_mlx.engine.adapters.updates import Update, effective_rank, frobenius

FIX = "copy the adapter's folder again"
LARGEST_SCALE = 1e30  # beyond it the norms would leave double precision
LONGEST_NUMBER = 9


@dataclass(frozen=True)
class Layer:
    """One adapted layer in its file; `mlx` tells the layout, (in, r) and (r, out), from PEFT's (r, in) and (out, r)."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scale: float
    mlx: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight it belongs to."""
        return (self.b.shape[1], self.a.shape[0]) if self.mlx else (self.b.shape[0], self.a.shape[1])

    @property
    def rank(self) -> int:
        return self.a.shape[1] if self.mlx else self.a.shape[0]

    def read(self) -> Update:
        """The numbers, in PEFT's layout."""
        a, b = self.a.floats(), self.b.floats()
        magnitude = None if self.magnitude is None else self.magnitude.floats()
        return Update(a.T, b.T, self.scale, magnitude) if self.mlx else Update(a, b, self.scale, magnitude)


@dataclass(frozen=True)
class Adapter:
    """An adapter as its folder describes it. `layers` are by path in the model, in the model's order.

    `kind` is `MLX` or `PEFT`; `base` holds what the adapter says of its base, a bare name where nothing else is known;
    `beside` is what was trained whole beside the LoRA (modules_to_save, biases), which no ΔW shows.
    """

    folder: Path
    kind: str
    rank: int
    alpha: float
    scale: float
    rslora: bool
    dropout: float
    base: AdapterBase
    origin: str
    size_bytes: int
    layers: dict[str, Layer] = field(repr=False)
    beside: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def dora(self) -> bool:
        return any(layer.magnitude is not None for layer in self.layers.values())

    @property
    def tensors(self) -> list[Tensor]:
        return [part for layer in self.layers.values() for part in (layer.a, layer.b, layer.magnitude) if part]

    @property
    def targets(self) -> tuple[str, ...]:
        """What was adapted: paths within a block, whole paths outside the blocks."""
        return tuple(sorted({place(path)[1] for path in self.layers}))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks with an adapted layer."""
        return tuple(sorted({block for path in self.layers if (block := place(path)[0]) is not None}))


@dataclass(frozen=True)
class LayerFacts:
    """One layer's ΔW: Frobenius norm, the directions it uses and its largest singular value.

    `zero` says that it adds nothing: never trained, or filled in where mlx-lm needs a tensor.
    """

    path: str
    block: int | None
    target: str
    shape: tuple[int, int]
    norm: float
    effective_rank: float
    largest: float

    @property
    def zero(self) -> bool:
        return self.norm == 0


def read_adapter(folder: Path) -> Adapter:
    """Read an MLX or PEFT adapter folder. Raises one AfsError that lists every problem of a file."""
    path = choose_adapter(folder).path / CONFIG
    is_peft = path.is_file() and "peft_type" in read_json(path, "the adapter's config")
    return _read_peft(folder) if is_peft else _read_mlx(folder)


def layer_facts(adapter: Adapter) -> list[LayerFacts]:
    """What each layer adds, in the model's order."""
    found = []
    for path, layer in adapter.layers.items():
        update = layer.read()
        values = update.singular_values()
        norm, largest = frobenius(values), float(values.max())
        found.append(LayerFacts(path, *place(path), update.shape, norm, effective_rank(values), largest))
    return found


def place(path: str) -> tuple[int | None, str]:
    """Which block a layer is in and its path there; no block and the whole path for one outside."""
    match = BLOCK.fullmatch(path)
    if match is None or len(match["layer"]) > LONGEST_NUMBER:
        return None, path
    return int(match["layer"]), match["key"]


def is_rslora(alpha: float, rank: int, scale: float) -> bool:
    """Whether scale is alpha / √r and not alpha / r."""
    return rank > 1 and not _close(alpha / rank, scale) and _close(alpha / rank**0.5, scale)


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-9 * abs(second)


def _read_mlx(folder: Path) -> Adapter:
    config = AdapterConfig.read(folder)
    check_adapter_folder(folder)
    rank, scale = config.lora_parameters.rank, config.lora_parameters.scale
    if abs(scale) > LARGEST_SCALE:
        raise AfsError(f"scale {scale:g} is out of any range", str(folder / CONFIG), "mend the adapter's config")
    leaves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / WEIGHTS, FIX).items():
        path, _, leaf = name.rpartition(".")
        leaves.setdefault(path, {})[leaf] = tensor
    layers = {
        path: Layer(side["lora_a"], side["lora_b"], side.get("m"), scale, mlx=True) for path, side in leaves.items()
    }
    base = config.afs.base
    if not (base.id or base.lineage):  # mlx_lm.lora keeps the model's name among its own arguments
        named = (config.model_extra or {}).get("model")
        base = base.model_copy(update={"id": named if isinstance(named, str) else ""})
    return Adapter(
        folder=folder,
        kind="MLX",
        rank=rank,
        alpha=config.alpha,
        scale=scale,
        rslora=config.afs.rslora or is_rslora(config.alpha, rank, scale),
        dropout=config.lora_parameters.dropout,
        base=base,
        origin=config.afs.origin,
        size_bytes=(folder / WEIGHTS).stat().st_size,
        layers=_in_model_order(layers),
    )


def _read_peft(folder: Path) -> Adapter:
    source = read_peft(folder)
    if found := source.bad_numbers():
        raise problems(found, "bad tensors", str(source.folder), FIX)
    settings = source.settings
    layers = {path: Layer(x.a, x.b, x.magnitude, x.scale, mlx=False) for path, x in source.layers.items()}
    return Adapter(
        folder=source.folder,
        kind="PEFT",
        rank=settings.rank,
        alpha=settings.alpha,
        scale=settings.scale,
        rslora=settings.rslora,
        dropout=settings.dropout,
        base=AdapterBase(id=settings.base_name),
        origin=f"PEFT {settings.peft_version}".strip(),
        size_bytes=sum(path.stat().st_size for path in weight_files(source.folder)),
        layers=_in_model_order(layers),
        beside=source.whole | {f"{path}.lora_B.bias": tensor for path, tensor in source.b_biases.items()},
    )


def _in_model_order(layers: dict[str, Layer]) -> dict[str, Layer]:
    """By block and name, what stands outside the blocks last."""

    def key(path: str) -> tuple[float, str]:
        block, name = place(path)
        return (float("inf") if block is None else block, name)

    return {path: layers[path] for path in sorted(layers, key=key)}
