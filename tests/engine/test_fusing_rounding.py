"""Numbers onto grids: packed as mlx packs, nearest, and with the error kept away from what the adapter reads."""

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.engine.fusing.rounding import Grid, fresh_grid, nearest_float, packed, to_dtype, widened, with_feedback


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def low_rank(rows: int, columns: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """An update whose numbers are `share` of the noise's, and the inputs it reads (in, r), orthonormal."""
    rng = np.random.default_rng(1)
    right = rng.normal(size=(4, columns))
    delta = rng.normal(size=(rows, 4)) @ right
    directions = np.linalg.qr(right.T)[0]
    return (delta * share * 0.02 / delta.std()).astype(np.float32), directions.astype(np.float32)


def survival(found: np.ndarray, base: np.ndarray, delta: np.ndarray) -> float:
    return float(((found - base) * delta).sum() / (delta**2).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_codes_are_packed_as_mlx_packs_them(bits: int, group_size: int) -> None:
    weight = noise(8, 128)
    codes, scales, biases = mx.quantize(mx.array(weight), group_size, bits)
    grid = fresh_grid(weight, bits, group_size, mx.float32)
    assert np.array_equal(packed(grid.codes(weight), bits), np.array(codes))
    assert np.array_equal(grid.scales, np.array(scales))
    decoded = mx.dequantize(codes, scales, biases, group_size, bits)
    assert np.abs(grid.decoded(grid.codes(weight)) - np.array(decoded)).max() < 1e-7


def test_codes_are_chosen_for_the_scales_that_are_stored() -> None:
    """At 8 bits a scale rounded to bfloat16 moves the far codes by more than half a step."""
    weight = noise(64, 128)
    codes, scales, biases = mx.quantize(mx.array(weight), 64, 8)
    stored = [part.astype(mx.bfloat16).astype(mx.float32) for part in (scales, biases)]
    theirs = np.array(mx.dequantize(codes, *stored, 64, 8))
    grid = fresh_grid(weight, 8, 64, mx.bfloat16)
    ours = grid.decoded(grid.codes(weight))
    assert ((ours - weight) ** 2).mean() < 0.7 * ((theirs - weight) ** 2).mean()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_nearest_float_is_mlx_s(dtype: mx.Dtype) -> None:
    weight = noise(1, 10_000)[0]
    assert np.array_equal(nearest_float(dtype)(weight, 0), to_dtype(weight, dtype))


@pytest.mark.parametrize(("share", "kept"), [(0.005, 0.9), (0.01, 0.93), (0.03, 0.96)])
def test_feedback_keeps_a_small_update_on_the_base_s_own_grid(share: float, kept: float) -> None:
    plain = noise(256, 512)
    own = fresh_grid(plain, 4, 64, mx.float32)
    base = own.decoded(own.codes(plain))
    delta, directions = low_rank(256, 512, share)
    wanted = base + delta
    nearest, found = own.decoded(own.codes(wanted)), with_feedback(wanted, own.nearest, directions)
    assert survival(nearest, base, delta) < 0.2, "nothing to keep"
    assert kept < survival(found, base, delta) < 1.05
    seen = np.linalg.norm(delta @ directions)
    assert np.linalg.norm((found - wanted) @ directions) < 0.25 * seen
    assert np.linalg.norm((nearest - wanted) @ directions) > 0.8 * seen
    assert np.allclose(own.decoded(own.codes(found)), found, atol=1e-7), "all of it lies on the grid"


def test_feedback_keeps_a_small_update_in_bfloat16() -> None:
    base = to_dtype(noise(256, 512), mx.bfloat16)
    delta, directions = low_rank(256, 512, 0.0005)
    nearest = to_dtype(base + delta, mx.bfloat16)
    found = with_feedback(base + delta, nearest_float(mx.bfloat16), directions)
    assert survival(nearest, base, delta) < 0.5
    assert survival(found, base, delta) == pytest.approx(1, abs=0.05)
    assert np.array_equal(to_dtype(found, mx.bfloat16), found)


def test_feedback_along_each_row_s_own_change() -> None:
    """DoRA scales whole rows: no few inputs hold that."""
    plain = noise(64, 512)
    own = fresh_grid(plain, 4, 64, mx.float32)
    base = own.decoded(own.codes(plain))
    delta = base * np.random.default_rng(3).uniform(-0.02, 0.02, (64, 1)).astype(np.float32)
    rows = delta / np.linalg.norm(delta, axis=1, keepdims=True)
    none = np.zeros((512, 0), np.float32)
    assert survival(own.decoded(own.codes(base + delta)), base, delta) < 0.2
    assert survival(with_feedback(base + delta, own.nearest, none, rows), base, delta) > 0.9


def test_a_grid_is_renewed_where_the_update_leaves_it() -> None:
    plain = noise(4, 128)
    own = fresh_grid(plain, 4, 64, mx.float32)
    wanted = plain.copy()
    wanted[2, 70] = 1.0
    grid = widened(own, wanted, mx.float32)
    assert grid.decoded(grid.codes(wanted))[2, 70] == pytest.approx(1, abs=0.01)
    renewed = (grid.scales != own.scales) | (grid.biases != own.biases)
    assert list(zip(*np.nonzero(renewed), strict=True)) == [(2, 1)]


def test_a_group_of_equal_numbers_has_a_grid() -> None:
    flat = np.zeros((2, 64), np.float32)
    grid = fresh_grid(flat, 4, 64, mx.float16)
    assert isinstance(grid, Grid)
    assert np.abs(grid.decoded(grid.codes(flat))).max() < 1e-6
