"""How much memory models and prompt caches may take, and how much a model will take before it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from afs_mlx.core.files import read_json
from afs_mlx.core.memory import Memory
from afs_mlx.engine.adapters.tensors import Header, read_headers
from afs_mlx.engine.bases.loading import AGAIN, check_weights
from afs_mlx.engine.metal import metal_device

MODELS_SHARE = 2 / 3  # of the memory; the system and the activations need the rest
CACHES_SHARE = 1 / 8
IDLE_S = 900.0


@dataclass(frozen=True)
class Budget:
    """Limits in bytes: for models with their adapters, for prompt caches, and the machine's memory.

    A model unused for `idle_s` may go. One model larger than `models_bytes` runs alone, one larger than
    `machine_bytes` does not run.
    """

    models_bytes: int
    caches_bytes: int
    machine_bytes: int
    idle_s: float = IDLE_S

    @classmethod
    def here(cls) -> "Budget":
        """This machine's, within the working set that Metal recommends."""
        total = Memory.here().total_bytes
        device = metal_device()
        usable = min(total, device[0]) if device else total
        return cls(min(int(total * MODELS_SHARE), usable), int(usable * CACHES_SHARE), total)


def bytes_on_loading(folder: Path) -> int:
    """What the model in a folder will take, from its headers: on a CPU four bytes for each weight."""
    shards = check_weights(folder)
    if mx.default_device() != mx.cpu:
        return sum(shard.stat().st_size for shard in shards)
    headers: dict[str, Header] = {}
    for shard in shards:
        headers |= read_headers(shard, AGAIN)
    config = read_json(folder / "config.json", "the base's config.json")
    settings = config.get("quantization") or config.get("quantization_config")
    return 4 * sum(_weights(name, headers, settings) for name in headers)


def bytes_held(model: nn.Module) -> int:
    """What a loaded model's arrays hold."""
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum(array.nbytes for array in parameters.values())


def _weights(name: str, headers: Mapping[str, Header], settings: Any) -> int:
    """How many numbers a tensor becomes: a packed integer holds 32 // bits, scales and biases vanish."""
    path, _, leaf = name.rpartition(".")
    packed = headers.get(f"{path}.weight")
    if packed is None or packed.dtype != "U32":
        return headers[name].size
    if leaf in ("scales", "biases"):
        return 0
    if leaf != "weight":
        return headers[name].size
    table = settings if isinstance(settings, dict) else {}
    own = table.get(path)
    bits = (own if isinstance(own, dict) else table).get("bits")
    return packed.size * 32 // bits if type(bits) is int and bits > 0 else packed.size * 8
