"""The loss of a head of which no whole logits exist, against float64: value and gradient, in slices of any size."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from afs_mlx.engine.training.compute import head as module
from afs_mlx.engine.training.compute.head import Head

VOCABULARY, WIDTH, ROWS = 1000, 32, 11


def noise(*shape: int, seed: int = 0, size: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0, size, shape).astype(np.float32))


def linear(bias: bool = False) -> nn.Linear:
    layer = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    layer.weight = noise(VOCABULARY, WIDTH, size=0.4)
    if bias:
        layer.bias = noise(VOCABULARY, seed=5, size=2)
    return layer


def embedding() -> nn.Embedding:
    layer = nn.Embedding(VOCABULARY, WIDTH)
    layer.weight = noise(VOCABULARY, WIDTH, size=0.4)
    return layer


HEADS: dict[str, Callable[[], Any]] = {
    "own": linear,
    "own, with a bias": lambda: linear(bias=True),
    "tied": embedding,
    "own, 4 bits": lambda: linear().to_quantized(group_size=32, bits=4),
    "own, 8 bits, with a bias": lambda: linear(bias=True).to_quantized(group_size=32, bits=8),
    "own, 3 bits": lambda: linear().to_quantized(group_size=32, bits=3),
    "own, mxfp4": lambda: linear().to_quantized(group_size=32, bits=4, mode="mxfp4"),
    "tied, 4 bits": lambda: embedding().to_quantized(group_size=32, bits=4),
    "tied, 8 bits": lambda: embedding().to_quantized(group_size=32, bits=8),
}


def head_of(layer: Any) -> Head:
    tied = isinstance(layer, nn.Embedding | nn.QuantizedEmbedding)
    model = SimpleNamespace(model=SimpleNamespace(embed_tokens=layer)) if tied else SimpleNamespace(lm_head=layer)
    return Head(model)  # type: ignore[arg-type]


def logits_of(layer: Any, hidden: mx.array) -> mx.array:
    """By mlx's own modules."""
    return layer.as_linear(hidden) if hasattr(layer, "as_linear") else layer(hidden)


def sample(seed: int = 1, rows: int = ROWS, size: float = 1.0) -> tuple[mx.array, mx.array, mx.array]:
    """Hidden states, targets (the last token of the vocabulary among them) and weights, one of them 0."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, VOCABULARY, rows)
    targets[0], targets[-1] = VOCABULARY - 1, 0
    weights = rng.choice([0.25, 1, 2.5], rows)
    weights[rows // 2] = 0
    return noise(rows, WIDTH, seed=seed, size=size), mx.array(targets), mx.array(weights.astype(np.float32))


def reference(layer: Any, hidden: mx.array, targets: mx.array, weights: mx.array) -> tuple[float, np.ndarray]:
    """Loss and gradient in float64; the weight matrix as mlx multiplies with it."""
    basis = np.array(logits_of(layer, mx.concatenate([mx.zeros((1, WIDTH)), mx.eye(WIDTH)])).astype(mx.float32))
    bias, matrix = basis[0].astype(np.float64), (basis[1:] - basis[0]).astype(np.float64).T
    states, w = np.array(hidden).astype(np.float64), np.array(weights).astype(np.float64)
    logits = states @ matrix.T + bias
    top = logits.max(-1, keepdims=True)
    p = np.exp(logits - top)
    p /= p.sum(-1, keepdims=True)
    picked = np.arange(len(states)), np.array(targets)
    log_p = (logits - top)[picked] - np.log(np.exp(logits - top).sum(-1))
    p[picked] -= 1
    return float(-(w * log_p).sum()), (w[:, None] * p) @ matrix


def found(layer: Any, *inputs: mx.array, cells: int, fast_exp: bool = True) -> tuple[float, np.ndarray]:
    hidden, targets, weights = inputs
    head = head_of(layer)
    loss, gradient = mx.value_and_grad(lambda h: head.summed_loss(h, targets, weights, cells, fast_exp=fast_exp))(
        hidden
    )
    return float(loss.item()), np.array(gradient)


def assert_near(mine: tuple[float, np.ndarray], theirs: tuple[float, np.ndarray], within: float = 1e-5) -> None:
    assert mine[0] == pytest.approx(theirs[0], rel=within)
    assert np.linalg.norm(mine[1] - theirs[1]) < within * np.linalg.norm(theirs[1])


@pytest.mark.parametrize("fast_exp", [True, False])
@pytest.mark.parametrize("cells", [0, 1, 300 * ROWS, 333 * ROWS, 10**9])  # 333: a last slice of one token
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_gradient_are_those_of_float64(kind: str, cells: int, fast_exp: bool) -> None:
    layer, inputs = HEADS[kind](), sample()
    assert_near(found(layer, *inputs, cells=cells, fast_exp=fast_exp), reference(layer, *inputs), 2e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_it_is_mlxs_own_cross_entropy(kind: str) -> None:
    layer, (hidden, targets, weights) = HEADS[kind](), sample(2)

    def plain(hidden: mx.array) -> mx.array:
        return mx.sum(weights * nn.losses.cross_entropy(logits_of(layer, hidden), targets, reduction="none"))

    loss, gradient = mx.value_and_grad(plain)(hidden)
    assert_near(found(layer, hidden, targets, weights, cells=1), (loss.item(), np.array(gradient)), 2e-5)


@pytest.mark.parametrize("cells", [0, 1, 400 * ROWS])
def test_no_more_logits_exist_at_a_time_than_asked_for(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    widths: list[int] = []
    real = module.softmax_parts
    monkeypatch.setattr(module, "softmax_parts", lambda s, **k: widths.append(s.shape[-1]) or real(s, **k))
    found(linear(), *sample(), cells=cells)
    widths = widths[: len(widths) // (sum(widths) // VOCABULARY)]
    assert sum(widths) == VOCABULARY, "the last slice is what is left"
    assert max(widths) == {0: VOCABULARY, 1: 256, 400 * ROWS: 400}[cells]


@pytest.mark.parametrize("place", ["first slice", "last slice"])
def test_logits_of_any_size_in_any_slice_overflow_nothing(place: str) -> None:
    """One slice has all that counts, a thousand above the others."""
    layer, (hidden, targets, weights) = linear(bias=True), sample(3)
    high = slice(0, 5) if place == "first slice" else slice(VOCABULARY - 5, VOCABULARY)
    layer.bias[high] = layer.bias[high] + 1000
    for cells in (0, 1):
        mine = found(layer, hidden, targets, weights, cells=cells)
        assert np.isfinite(mine[1]).all()
        assert_near(mine, reference(layer, hidden, targets, weights), 1e-4)


def test_a_weight_of_zero_leaves_nothing() -> None:
    layer, (hidden, targets, weights) = linear(), sample(4)
    loss, gradient = found(layer, hidden, targets, weights * 0, cells=1)
    assert (loss, np.abs(gradient).max()) == (0, 0)
    _, gradient = found(layer, hidden, targets, weights, cells=1)
    assert (np.abs(gradient).max(axis=1) == 0).tolist() == (np.array(weights) == 0).tolist()


def test_what_comes_from_above_multiplies_the_gradient() -> None:
    layer, (hidden, targets, weights) = linear(), sample(5)
    head = head_of(layer)

    def scaled(hidden: mx.array) -> mx.array:
        return mx.square(head.summed_loss(hidden, targets, weights, 1, fast_exp=True)) * 3

    loss, expected = found(layer, hidden, targets, weights, cells=1)
    assert np.allclose(np.array(mx.grad(scaled)(hidden)), 6 * loss * expected, rtol=1e-5)


def test_one_position_alone() -> None:
    layer, inputs = embedding(), (noise(1, WIDTH), mx.array([VOCABULARY - 1]), mx.array([1.5]))
    for cells in (0, 1, 500):
        assert_near(found(layer, *inputs, cells=cells), reference(layer, *inputs))


def test_halves_are_summed_in_float32() -> None:
    layer, (hidden, targets, weights) = linear(), sample(6)
    layer.weight, hidden = layer.weight.astype(mx.bfloat16), hidden.astype(mx.bfloat16)
    head = head_of(layer)
    loss, gradient = mx.value_and_grad(lambda h: head.summed_loss(h, targets, weights, 1, fast_exp=False))(hidden)
    assert (loss.dtype, gradient.dtype) == (mx.float32, mx.bfloat16)
    layer.weight = layer.weight.astype(mx.float32)
    expected = reference(layer, hidden.astype(mx.float32), targets, weights)
    assert_near((loss.item(), np.array(gradient.astype(mx.float32))), expected, 2e-2)


def test_it_compiles_and_recomputes() -> None:
    layer, (hidden, targets, weights) = linear(bias=True), sample(7)
    head = head_of(layer)

    def loss(hidden: mx.array) -> mx.array:
        return head.summed_loss(hidden, targets, weights, 1, fast_exp=True)

    expected = found(layer, hidden, targets, weights, cells=1)
    for wrapped in (mx.compile(mx.value_and_grad(loss)), mx.value_and_grad(mx.checkpoint(loss))):
        value, gradient = wrapped(hidden)
        assert_near((value.item(), np.array(gradient)), expected, 1e-6)
