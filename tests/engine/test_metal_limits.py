"""Metal's limits by an injected mlx; this machine has none of it."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from afs_mlx.engine.metal import MetalLimits, metal_device, set_memory_limits

GPU, CPU = object(), object()
M1_16_GB = {
    "device_name": "Apple M1",
    "architecture": "applegpu_g13g",
    "memory_size": 17179869184,
    "max_recommended_working_set_size": 11453251584,
    "max_buffer_length": 8589934592,
    "resource_limit": 499000,
}


class FakeMlx(SimpleNamespace):
    def __init__(self, info: dict[str, Any], *, available: bool = True, device: object = GPU, refuses: bool = False):
        self.set: list[tuple[str, int]] = []
        super().__init__(
            metal=SimpleNamespace(is_available=lambda: available),
            gpu=GPU,
            default_device=lambda: device,
            device_info=lambda: info,
            set_wired_limit=self.wired,
            set_cache_limit=lambda limit: self.set.append(("cache", limit)),
        )
        self.refuses = refuses

    def wired(self, limit: int) -> None:
        if self.refuses:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than ... is not allowed.")
        self.set.append(("wired", limit))


def test_the_limits_come_from_the_machine() -> None:
    mlx = FakeMlx(M1_16_GB)
    assert set_memory_limits(mlx) == MetalLimits(11453251584, 17179869184, 11453251584, 11453251584 // 4)
    assert mlx.set == [("wired", 11453251584), ("cache", 11453251584 // 4)]


def test_wired_stays_below_the_memory_where_the_system_limit_was_raised() -> None:
    mlx = FakeMlx({**M1_16_GB, "max_recommended_working_set_size": 17179869184})
    limits = set_memory_limits(mlx)
    assert limits is not None
    assert limits.wired_bytes == 17179869183


def test_a_refused_wired_limit_is_told_and_the_cache_is_still_bounded() -> None:
    mlx = FakeMlx(M1_16_GB, refuses=True)
    limits = set_memory_limits(mlx)
    assert limits is not None
    assert limits.wired_bytes is None
    assert mlx.set == [("cache", limits.cache_bytes)]


@pytest.mark.parametrize(
    "mlx",
    [
        FakeMlx(M1_16_GB, available=False),
        FakeMlx(M1_16_GB, device=CPU),
        FakeMlx({"device_name": "AMD EPYC", "architecture": "x86_64"}),
        FakeMlx({**M1_16_GB, "max_recommended_working_set_size": 0}),
    ],
)
def test_without_metal_nothing_is_set(mlx: FakeMlx) -> None:
    assert set_memory_limits(mlx) is None
    assert metal_device(mlx) is None
    assert mlx.set == []


def test_the_names_exist_in_mlx() -> None:
    for name in ("device_info", "set_wired_limit", "set_cache_limit", "default_device", "gpu"):
        assert hasattr(mx, name)
    assert isinstance(mx.metal.is_available(), bool)
    assert isinstance(mx.device_info(), dict)
    for key in ("max_recommended_working_set_size", "memory_size"):
        assert f'"{key}"' in (mx.set_wired_limit.__doc__ or "")


def test_this_machine_is_asked() -> None:
    if mx.metal.is_available():
        assert metal_device() is not None
    else:
        before = mx.set_cache_limit(1 << 40)
        mx.set_cache_limit(before)
        assert set_memory_limits() is None
        assert mx.set_cache_limit(before) == before
