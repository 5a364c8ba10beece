"""Our exponential against float64 over all of float32, and what is made of it against mlx's own."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from afs_mlx.engine.training.compute import exponential
from afs_mlx.engine.training.compute.exponential import HIGHEST, LOWEST, exp, softmax_parts, swiglu
from afs_mlx.schema.recipe import Speed

BOUND = 4e-6  # relative, at the ends of the range; measured 3.9e-6


def error_of(x: np.ndarray) -> float:
    """The largest relative error against float64."""
    x = x.astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    return float(np.max(np.abs(np.array(exp(mx.array(x))).astype(np.float64) - expected) / expected))


@pytest.mark.parametrize(("reach", "bound"), [(1, 1.5e-7), (22, 1.1e-6), (44, 2e-6), (88.3, 4e-6)])
def test_the_relative_error_grows_with_the_distance_from_zero(reach: float, bound: float) -> None:
    """x · log2 e is rounded to float32, so that its error is a share of x; the polynomial's own is far below."""
    assert error_of(np.linspace(-min(reach, -LOWEST), reach, 2_000_003)) < bound


def test_the_error_is_what_the_module_and_the_recipe_say() -> None:
    assert "1.1e-6 up to 22, 4e-6 up to the ends" in " ".join(str(exponential.__doc__).split())
    assert "below 4e-6" in str(Speed.model_fields["fast_exp"].description)


def test_the_relative_error_near_zero_and_where_the_exponent_turns_over() -> None:
    """Halves of log 2 are where the polynomial's part is longest, and rounding may fall either way."""
    turns = np.arange(-125, 127)[:, None] * np.log(2) / 2 + np.linspace(-1e-5, 1e-5, 201)
    assert error_of(turns.clip(LOWEST, HIGHEST)) < BOUND
    tiny = np.logspace(-45, 0, 5000)
    assert error_of(np.concatenate([-tiny, [0.0, -0.0], tiny])) < 1.5e-7


def test_zero_and_denormals_give_exactly_one() -> None:
    x = mx.array(np.array([0.0, -0.0, 1e-45, -1e-45, 1e-40, np.finfo(np.float32).tiny], dtype=np.float32))
    assert exp(x).tolist() == [1.0] * 6


def test_every_bit_pattern_gives_what_it_should() -> None:
    """One in 1,009 of all float32, both signs: nothing overflows into a sign, a NaN or a wrong exponent."""
    x = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    found = np.array(exp(mx.array(x)))
    assert np.array_equal(np.isnan(found), np.isnan(x))
    numbers = ~np.isnan(x)
    with np.errstate(over="ignore"):
        expected = np.exp(np.clip(x[numbers].astype(np.float64), LOWEST, HIGHEST))
    assert (found[numbers] > 0).all()
    assert np.isfinite(found[numbers]).all()
    assert np.max(np.abs(found[numbers] / expected - 1)) < 1e-5, "the bounds themselves are rounded to float32"


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (-np.inf, 0, 1.3e-38),
        (-1e30, 0, 1.3e-38),
        (-103.9, 0, 1.3e-38),
        (np.inf, 2e38, np.inf),
        (1e30, 2e38, np.inf),
        (3.4e38, 2e38, np.inf),
    ],
)
def test_beyond_the_range_it_stays_at_the_ends(x: float, low: float, high: float) -> None:
    assert low <= exp(mx.array([x], dtype=mx.float32)).item() <= high


def test_it_never_falls() -> None:
    x = np.sort(np.random.default_rng(0).uniform(-90, 90, 200_000)).astype(np.float32)
    found = np.array(exp(mx.array(x))).astype(np.float64)
    assert (found[1:] >= found[:-1] * (1 - 2 * BOUND)).all()


# Softmax


def softmax(scores: np.ndarray, *, fast_exp: bool = True) -> np.ndarray:
    powers, total, _ = softmax_parts(mx.array(scores.astype(np.float32)), fast_exp=fast_exp)
    return np.array(powers / total)


@pytest.mark.parametrize("size", [1e-3, 1, 30, 1e4])
def test_softmax_is_mlxs_own(size: float) -> None:
    scores = (np.random.default_rng(1).normal(0, size, (50, 301))).astype(np.float32)
    expected = np.array(mx.softmax(mx.array(scores), axis=-1, precise=True))
    assert np.abs(softmax(scores) - expected).max() < 3e-6
    assert np.abs(softmax(scores).sum(-1) - 1).max() < 1e-5
    assert np.abs(softmax(scores, fast_exp=False) - expected).max() < 1e-6


@pytest.mark.parametrize("mask", [-1e30, -np.inf])
def test_masked_places_get_nothing_that_counts(mask: float) -> None:
    scores = np.random.default_rng(2).normal(0, 5, (4, 200))
    scores[:, 100:] = mask
    found = softmax(scores)
    assert found[:, 100:].max() < 1e-37
    assert np.allclose(found[:, :100], softmax(scores[:, :100]), rtol=1e-6, atol=0)


def test_a_row_with_a_single_place_left_is_certain_of_it() -> None:
    scores = np.full((1, 513), -1e30)
    scores[0, 7] = -50.0
    assert softmax(scores)[0, 7] == 1.0


def test_a_row_that_is_all_mask_stays_finite() -> None:
    """No query of ours has one; were there one, it must not turn the rest into NaN."""
    assert np.allclose(softmax(np.full((2, 8), -1e30)), 1 / 8)


def test_nan_is_not_hidden() -> None:
    scores = np.zeros((2, 4))
    scores[0, 1] = np.nan
    found = softmax(scores)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    assert mx.isnan(swiglu(mx.array([np.nan, 1.0]), mx.array([1.0, np.nan]))).all()


# SwiGLU


def reference(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


@pytest.mark.parametrize("size", [0.01, 1, 20, 100])
def test_swiglu_and_its_gradients_are_mlxs_own(size: float) -> None:
    rng = np.random.default_rng(3)
    gate, up, cotangent = (mx.array(rng.normal(0, size, (37, 19)).astype(np.float32)) for _ in range(3))
    values, found = mx.vjp(swiglu, [gate, up], [cotangent])
    expected_values, expected = mx.vjp(reference, [gate, up], [cotangent])
    for mine, theirs in zip([*values, *found], [*expected_values, *expected], strict=True):
        assert np.linalg.norm(np.array(mine - theirs)) < 3e-6 * np.linalg.norm(np.array(theirs))


def test_swiglu_is_flat_far_below_and_straight_far_above() -> None:
    gate, one = mx.array([-1e4, -200.0, -100.0, 100.0, 1e4]), mx.ones((5,))
    values, (d_gate, d_up) = mx.vjp(swiglu, [gate, one], [one])
    assert np.allclose(np.array(values[0]), [0, 0, 0, 100, 1e4], atol=1e-30)
    assert np.allclose(np.array(d_gate), [0, 0, 0, 1, 1], atol=1e-30)
    assert np.allclose(np.array(d_up), [0, 0, 0, 100, 1e4], atol=1e-30)


def test_a_large_array_goes_by_slices_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    gate, up, cotangent = (mx.array(rng.normal(0, 3, (3, 5, 41)).astype(np.float32)) for _ in range(3))

    def everything() -> list[mx.array]:
        values, found = mx.vjp(swiglu, [gate, up], [cotangent])
        return [exp(gate), *values, *found]

    whole = everything()
    monkeypatch.setattr(exponential, "SLICE", 100)  # 615 numbers: six slices and a rest
    for mine, expected in zip(everything(), whole, strict=True):
        assert mine.shape == expected.shape
        assert mx.array_equal(mine, expected)
