"""Metal's memory limits, set from the machine. Knows no model."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

CACHE_SHARE = 4  # the cache may hold 1 / CACHE_SHARE of the working set


@dataclass(frozen=True)
class MetalLimits:
    """What was set, in bytes; `wired_bytes` is None where the system refused it."""

    working_set_bytes: int
    memory_bytes: int
    wired_bytes: int | None
    cache_bytes: int


def metal_device(mlx: Any = mx) -> tuple[int, int] | None:
    """(recommended working set, memory) of the GPU in bytes; None without Metal, under Rosetta, and on the CPU.

    The keys are those that `mx.set_wired_limit`'s documentation names.
    """
    if not mlx.metal.is_available() or mlx.default_device() != mlx.gpu:
        return None
    info = mlx.device_info()
    working_set, memory = info.get("max_recommended_working_set_size"), info.get("memory_size")
    if not isinstance(working_set, int) or not isinstance(memory, int) or working_set <= 0:
        return None
    return working_set, memory


def set_memory_limits(mlx: Any = mx) -> MetalLimits | None:
    """Keep the model wired and the buffer cache bounded; returns what was set, None where there is no Metal.

    Wired is the recommended working set, strictly below the memory (mlx's documentation asks for that); on macOS before
    15 it has no effect. The cache's own default is 1.5 times the working set, which is more than the machine has:
    buffers of many shapes would push everything else into swap.
    """
    device = metal_device(mlx)
    if device is None:
        return None
    working_set, memory = device
    wired: int | None = min(working_set, memory - 1)
    try:
        mlx.set_wired_limit(wired)
    except (ValueError, RuntimeError):  # above the system's own iogpu.wired_limit_mb
        wired = None
    cache = working_set // CACHE_SHARE
    mlx.set_cache_limit(cache)
    return MetalLimits(working_set, memory, wired, cache)
