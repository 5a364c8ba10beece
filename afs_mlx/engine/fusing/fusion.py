"""A base folder and an adapter folder → a complete model folder, one tensor after the other.

Every weight is dequantised if need be, added to and rounded in float32. What the adapter does not change keeps its bits
where it can. Beside one tensor as it is stored, only a few blocks of rows are in memory.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model, save_config

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.core.files import folder_size_bytes
from afs_mlx.engine.adapters.format import check_adapter_folder
from afs_mlx.engine.adapters.tensors import Tensor
from afs_mlx.engine.bases.loading import check_weights
from afs_mlx.engine.fusing.adding import Change, changes
from afs_mlx.engine.fusing.forms import Form, default_form, float_dtype, forms_of, quantisable, quantisation_config
from afs_mlx.engine.fusing.layers import Source, Stored, raw, stored
from afs_mlx.engine.fusing.options import StorageOptions
from afs_mlx.engine.fusing.writing import INDEX, Shards

# Everything a model folder needs beside its weights and config.
COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
ADAPTER_FIX = "train again with a lower learning rate, or check the adapter: afs-mlx adapters inspect"


@dataclass
class Fused:
    """What fusing left. `survival` is ⟨ΔŴ, ΔW⟩ / ⟨ΔW, ΔW⟩ by changed layer, ΔŴ what its stored weight differs by.

    `changed_bits` are theirs; `kept` counts the layers that are a quantised base's own bit for bit; `extra_bytes` is
    what the changed ones take beyond their bits in the base. `dequantised`: only a quantised base was there.
    """

    dtype: str
    dequantised: bool
    quantisation: dict[str, Any]
    survival: dict[str, float] = field(default_factory=dict)
    changed_bits: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    extra_bytes: int = 0
    size_bytes: int = 0

    @property
    def layers(self) -> int:
        """How many layers the adapter changed."""
        return len(self.survival)


def fuse(base_folder: Path, adapter: Path, target: Path, options: StorageOptions | None = None) -> Fused:
    """Write base + ΔW to the folder `target` (which exists) as a complete mlx-lm model.

    Raises AfsError for an adapter that does not fit or changes nothing, and for a result with NaN or infinities.
    """
    options = options or StorageOptions()
    check_adapter_folder(adapter, base_folder)
    check_weights(base_folder)
    model, config = load_model(base_folder, lazy=True)
    changed, vectors = changes(model, adapter)
    changed = {path: change for path, change in changed.items() if not change.is_zero}
    if not changed and not vectors:
        raise AfsError("the adapter changes no layer", str(adapter), "train or convert it again")
    _copy_companions(base_folder, target)
    work = _Work(model, changed, vectors, options)
    done = work.write(target, str(adapter))
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    if done.quantisation:
        config["quantization"] = done.quantisation
    if done.dequantised:
        config["torch_dtype"] = done.dtype
        config.pop("dtype", None)
    save_config(config, config_path=target / "config.json")
    done.size_bytes = folder_size_bytes(target)
    return done


class _Work:
    """The model's tensors on their way; each leaves memory once it is written."""

    def __init__(
        self, model: nn.Module, changed: dict[str, Change], vectors: dict[str, Tensor], options: StorageOptions
    ) -> None:
        self._changed, self._vectors, self._options = changed, vectors, options
        self._forms = forms_of(model, set(changed), options)
        self._dtype = float_dtype(model)
        self._tensors: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        self._sources = {path: Source.of(module) for path, module in quantisable(model).items()}
        self._done = Fused(
            dtype=str(self._dtype).removeprefix("mlx.core."),
            dequantised=any(source.form for source in self._sources.values()),
            quantisation=quantisation_config(default_form(model, options), self._forms),
        )
        model.update(tree_map(lambda _: mx.array([]), model.parameters()))

    def write(self, target: Path, adapter: str) -> Fused:
        scales = [f"{path}.{name}" for path in self._sources for name in ("scales", "biases")]
        shards = Shards(target, self._options.shard_bytes, [*self._tensors, *scales])
        found: list[str] = []
        parameters = 0
        for path in list(self._sources):
            source, form = self._sources.pop(path), self._forms[path]
            rows, columns = source.shape
            parameters += rows * columns
            own = {f"{path}.{name}" for name in source.arrays}
            tensors = {name: self._tensors.pop(name) for name in own}
            if path not in self._changed and form == source.form:
                self._done.kept += form is not None
                found += _copy(shards, tensors)
                continue
            done = stored(source, self._changed.get(path), form, self._dtype)
            if not done.finite:
                found.append(f"{path}.weight: NaN or beyond what {self._done.dtype} can hold")
            for name, (array, dtype) in done.arrays.items():
                shards.add(f"{path}.{name}", array, dtype)
            self._note(path, source, form, done)
        for name in list(self._tensors):
            tensor = self._tensors.pop(name)
            if name in self._vectors:
                tensor = mx.array(self._vectors[name].floats()).astype(tensor.dtype)
            parameters += tensor.size
            found += _copy(shards, {name: tensor})
        if found:
            raise problems(found, "the fused model would hold numbers that are none", adapter, ADAPTER_FIX)
        shards.close(parameters)
        return self._done

    def _note(self, path: str, source: Source, form: Form | None, done: Stored) -> None:
        if path not in self._changed:
            return
        bits = form.bits if form else 8 * self._dtype.size
        self._done.survival[path] = done.survival
        self._done.changed_bits[path] = bits
        if source.form and self._options.quantize != "none":
            rows, columns = source.shape
            self._done.extra_bytes += max(0, rows * columns * (bits - source.form.bits) // 8)


def _copy(shards: Shards, tensors: dict[str, mx.array]) -> list[str]:
    """Write tensors as they are; returns what is wrong with them."""
    found = []
    for name, array in tensors.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all():
            found.append(f"{name}: NaN or infinite")
        shards.add(name, raw(array), array.dtype)
    return found


def _copy_companions(base_folder: Path, target: Path) -> None:
    for pattern in COMPANIONS:
        for file in base_folder.glob(pattern):
            if file.name not in (INDEX, "manifest.json"):
                shutil.copyfile(file, target / file.name)
