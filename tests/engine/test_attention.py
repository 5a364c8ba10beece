"""Our causal attention against float64 and mlx's own, output and gradients, wherever the queries begin."""

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.engine.training.compute import attention
from afs_mlx.engine.training.compute.attention import causal_attention

# rows, heads, kv heads, queries, keys, width of a head
SHAPES = {
    "one head": (1, 1, 1, 7, 7, 4),
    "grouped heads": (2, 6, 2, 9, 9, 8),
    "all share one": (2, 4, 1, 5, 5, 4),
    "keys before the queries": (3, 4, 2, 6, 15, 8),
    "one query": (2, 4, 2, 1, 12, 8),
    "one token": (2, 4, 2, 1, 1, 8),
}


def arrays(shape: tuple[int, ...], seed: int = 0) -> tuple[list[mx.array], mx.array, float]:
    """Queries, keys, values, a cotangent and the scale."""
    rows, heads, kv_heads, queries, keys, width = shape
    rng = np.random.default_rng(seed)
    sizes = (heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)
    made = [mx.array(rng.normal(0, 1, (rows, *size, width)).astype(np.float32)) for size in sizes]
    return made[:3], made[3], width**-0.5


def reference(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """Float64, a query at a time."""
    q, k, v = (np.asarray(each, dtype=np.float64) for each in (queries, keys, values))
    rows, heads, n, width = q.shape
    ahead, group = k.shape[2] - n, heads // k.shape[1]
    output = np.zeros((rows, heads, n, width))
    for row, head, i in np.ndindex(rows, heads, n):
        seen = slice(0, i + ahead + 1)
        scores = k[row, head // group, seen] @ q[row, head, i] * scale
        powers = np.exp(scores - scores.max())
        output[row, head, i] = powers / powers.sum() @ v[row, head // group, seen]
    return output


def near(found: mx.array, expected: object, within: float = 5e-6) -> bool:
    theirs = np.asarray(expected, dtype=np.float64)
    return bool(np.linalg.norm(np.array(found) - theirs) < within * max(np.linalg.norm(theirs), 1e-9))


@pytest.mark.parametrize("fast_exp", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_is_that_of_float64(shape: str, fast_exp: bool) -> None:
    inputs, _, scale = arrays(SHAPES[shape])
    expected = reference(*map(np.array, inputs), scale)
    assert near(causal_attention(*inputs, scale, fast_exp=fast_exp), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_those_of_mlxs_own(shape: str) -> None:
    inputs, cotangent, scale = arrays(SHAPES[shape], seed=1)

    def run(*inputs: mx.array, fast_exp: bool) -> mx.array:
        return causal_attention(*inputs, scale, fast_exp=fast_exp)

    _, found = mx.vjp(lambda *inputs: run(*inputs, fast_exp=True), inputs, [cotangent])
    _, expected = mx.vjp(lambda *inputs: run(*inputs, fast_exp=False), inputs, [cotangent])
    for mine, theirs in zip(found, expected, strict=True):
        if inputs[1].shape[2] > 1:  # a single key is certain: its gradients through the softmax are nothing
            assert near(mine, np.array(theirs))
    assert near(found[2], np.array(expected[2]))


def test_the_gradients_are_slopes_in_float64() -> None:
    inputs, cotangent, scale = arrays(SHAPES["keys before the queries"], seed=2)
    plain, weights = [np.array(each).astype(np.float64) for each in inputs], np.array(cotangent).astype(np.float64)
    _, found = mx.vjp(lambda *each: causal_attention(*each, scale, fast_exp=True), inputs, [cotangent])
    rng = np.random.default_rng(3)
    for number in range(3):
        direction = rng.normal(0, 1, plain[number].shape)
        ends = []
        for side in (1e-4, -1e-4):
            moved = [each + side * direction if i == number else each for i, each in enumerate(plain)]
            ends.append(float((reference(*moved, scale) * weights).sum()))
        slope = (ends[0] - ends[1]) / 2e-4
        assert slope == pytest.approx(float((np.array(found[number]) * direction).sum()), rel=1e-4)


def test_a_later_key_is_never_seen() -> None:
    inputs, cotangent, scale = arrays(SHAPES["keys before the queries"])
    queries, keys, values = inputs
    later = mx.arange(15)[None, None, :, None] > 11
    changed = [queries, mx.where(later, 1e3, keys), mx.where(later, 1e3, values)]
    before, after = (causal_attention(*each, scale, fast_exp=True) for each in (inputs, changed))
    assert mx.array_equal(before[:, :, :3], after[:, :, :3])
    assert not mx.allclose(before[:, :, 3:], after[:, :, 3:])
    first = mx.where(mx.arange(6)[None, None, :, None] < 3, cotangent, 0)
    _, gradients = mx.vjp(lambda *each: causal_attention(*each, scale, fast_exp=True), inputs, [first])
    assert mx.abs(gradients[1][:, :, 12:]).max().item() < 1e-30
    assert mx.abs(gradients[2][:, :, 12:]).max().item() < 1e-30


def test_scores_beyond_what_exp_can_hold_give_a_certain_answer() -> None:
    inputs, cotangent, scale = arrays(SHAPES["grouped heads"])
    large = [inputs[0] * 1e3, inputs[1] * 1e3, inputs[2]]
    values, gradients = mx.vjp(lambda *each: causal_attention(*each, scale, fast_exp=True), large, [cotangent])
    assert near(values[0], reference(*map(np.array, large), scale), 1e-4)
    assert all(bool(mx.isfinite(each).all()) for each in gradients)


def test_shared_keys_collect_the_gradients_of_all_rows() -> None:
    """They are one row that is broadcast to all."""
    (queries, keys, values), cotangent, scale = arrays((3, 4, 2, 6, 6, 8))
    start = arrays((1, 4, 2, 5, 5, 8), seed=4)[0][1]

    def run(start: mx.array, fast_exp: bool) -> mx.array:
        spread = mx.broadcast_to(start, (3, *start.shape[1:]))
        both = mx.concatenate([spread, keys], axis=2), mx.concatenate([spread, values], axis=2)
        return causal_attention(queries, *both, scale, fast_exp=fast_exp)

    _, (found,) = mx.vjp(lambda start: run(start, True), [start], [cotangent])
    _, (expected,) = mx.vjp(lambda start: run(start, False), [start], [cotangent])
    assert found.shape == start.shape
    assert near(found, np.array(expected))


@pytest.mark.parametrize("ahead", [0, 30])
@pytest.mark.parametrize("queries", [127, 128, 129, 192, 193, 256, 257, 330])
@pytest.mark.parametrize("cells", [0, 10**9], ids=["made again", "kept"])
def test_blocks_of_queries_see_what_they_may(
    monkeypatch: pytest.MonkeyPatch, queries: int, ahead: int, cells: int
) -> None:
    """Around every length where another block begins, with probabilities kept for the gradient or made again."""
    monkeypatch.setattr(attention, "STORED_CELLS", cells)
    inputs, cotangent, scale = arrays((1, 2, 1, queries, queries + ahead, 4), seed=queries)

    def run(*inputs: mx.array, fast_exp: bool) -> mx.array:
        return causal_attention(*inputs, scale, fast_exp=fast_exp)

    (values,), found = mx.vjp(lambda *inputs: run(*inputs, fast_exp=True), inputs, [cotangent])
    (expected_values,), expected = mx.vjp(lambda *inputs: run(*inputs, fast_exp=False), inputs, [cotangent])
    assert near(values, np.array(expected_values))
    assert all(near(mine, np.array(theirs)) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("queries", [1, 64, 128, 192, 193, 1000])
def test_every_query_stands_in_one_block(queries: int) -> None:
    blocks = attention._blocks(queries, queries + 7)
    assert [number for start, stop, _ in blocks for number in range(start, stop)] == list(range(queries))
    assert all(seen == stop + 7 for _, stop, seen in blocks)
    assert max(stop - start for start, stop, _ in blocks) <= 1.5 * attention.BLOCK


@pytest.mark.parametrize("fast_exp", [True, False])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_halves_fall_to_mlxs_own(monkeypatch: pytest.MonkeyPatch, fast_exp: bool, dtype: mx.Dtype) -> None:
    """The polynomial knows float32 alone."""
    monkeypatch.setattr(attention, "softmax_parts", lambda *given, **options: pytest.fail("float32 alone"))
    inputs, _, scale = arrays(SHAPES["keys before the queries"])
    found = causal_attention(*(each.astype(dtype) for each in inputs), scale, fast_exp=fast_exp)
    assert found.dtype == dtype
    assert near(found.astype(mx.float32), reference(*map(np.array, inputs), scale), 1e-2)


@pytest.mark.parametrize("cells", [0, 10**9], ids=["made again", "kept"])
def test_it_composes_with_recomputation_and_compilation(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(attention, "STORED_CELLS", cells)
    inputs, cotangent, scale = arrays(SHAPES["grouped heads"])

    def gradients(*inputs: mx.array) -> list[mx.array]:
        return mx.vjp(lambda *each: causal_attention(*each, scale, fast_exp=True), list(inputs), [cotangent])[1]

    def recomputed(*inputs: mx.array) -> list[mx.array]:
        run = mx.checkpoint(lambda *each: causal_attention(*each, scale, fast_exp=True))
        return mx.vjp(run, list(inputs), [cotangent])[1]

    expected = gradients(*inputs)
    for found in (mx.compile(gradients)(*inputs), recomputed(*inputs), mx.compile(recomputed)(*inputs)):
        assert all(near(mine, np.array(theirs), 1e-6) for mine, theirs in zip(found, expected, strict=True))
