"""Causal attention whose queries are the last of the keys' positions. Knows no model and no padding.

On a CPU mlx's own keeps several score matrices for the gradient and computes exponentials for the half that the mask
throws away. Here queries come in blocks, each with the keys that its last query may see, and the gradient of long rows
makes a block's probabilities again.
"""

import mlx.core as mx

from afs_mlx.engine.training.compute.custom import with_gradient
from afs_mlx.engine.training.compute.exponential import softmax_parts

BLOCK = 128  # queries
STORED_CELLS = 512 * 512  # queries times keys of a head up to which probabilities are kept for the gradient


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, *, fast_exp: bool) -> mx.array:
    """(rows, heads, q, d) of queries over (rows, kv heads, k, d) keys, k ≥ q: query i sees keys up to i + k - q.

    `fast_exp` is for a CPU and float32.
    """
    if not fast_exp or queries.dtype != mx.float32:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    parts = []
    for start, stop, seen in _blocks(queries.shape[2], keys.shape[2]):
        block = (queries[:, :, start:stop] * scale, keys[:, :, :seen], values[:, :, :seen], _mask(stop - start, seen))
        stored = queries.shape[2] * keys.shape[2] <= STORED_CELLS
        parts.append(_keeping(*block)[0] if stored else _recomputing(*block))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _blocks(queries: int, keys: int) -> list[tuple[int, int, int]]:
    """First query, end, and the number of keys that the block sees. The last block may be half as long again."""
    starts = list(range(0, max(1, queries - BLOCK // 2), BLOCK))
    ends = [*starts[1:], queries]
    return [(start, end, keys - queries + end) for start, end in zip(starts, ends, strict=True)]


def _mask(queries: int, keys: int) -> mx.array:
    """(q, k): 0 where a query may look, far below every score elsewhere."""
    return mx.triu(mx.full((queries, keys), -1e30), keys - queries + 1)


def _grouped(heads: mx.array, kv_heads: int) -> mx.array:
    """(rows, heads, q, d) → (rows, kv heads, heads / kv heads · q, d): the queries that share keys as one matrix."""
    rows, _, _, d = heads.shape
    return heads.reshape(rows, kv_heads, -1, d)


def _probabilities(queries: mx.array, keys: mx.array, mask: mx.array) -> mx.array:
    """(rows, kv heads, heads / kv heads · q, k)."""
    rows, kv_heads, k, _ = keys.shape
    scores = _grouped(queries, kv_heads) @ keys.swapaxes(-1, -2)
    powers, total, _ = softmax_parts(scores.reshape(rows, kv_heads, -1, queries.shape[2], k) + mask)
    return (powers * (1.0 / total)).reshape(rows, kv_heads, -1, k)


def _with_probabilities(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array
) -> tuple[mx.array, mx.array]:
    """The output, shaped as the queries, and the probabilities, for the gradient."""
    probabilities = _probabilities(queries, keys, mask)
    return (probabilities @ values).reshape(queries.shape), probabilities


def _output(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    return _with_probabilities(queries, keys, values, mask)[0]


def _gradient(
    primals: tuple[mx.array, ...], cotangent: mx.array, output: mx.array, probabilities: mx.array
) -> tuple[mx.array, ...]:
    queries, keys, values, mask = primals
    kv_heads = keys.shape[1]
    grouped = _grouped(cotangent, kv_heads)
    d_values = probabilities.swapaxes(-1, -2) @ grouped
    # The rows' sums of p · dp, from the output: (Σ p v) · dy, a matrix k / d times smaller.
    sums = mx.sum(grouped * _grouped(output, kv_heads), axis=-1, keepdims=True)
    d_scores = probabilities * (grouped @ values.swapaxes(-1, -2) - sums)
    d_queries = (d_scores @ keys).reshape(queries.shape)
    d_keys = d_scores.swapaxes(-1, -2) @ _grouped(queries, kv_heads)
    return d_queries, d_keys, d_values, mx.zeros_like(mask)


def _keeping_gradient(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
) -> tuple[mx.array, ...]:
    return _gradient(primals, cotangents[0], *outputs)


def _recomputing_gradient(primals: tuple[mx.array, ...], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    queries, keys, _, mask = primals
    # Not before the gradient arrives: mlx is free to run what needs nothing else early, and would hold it.
    late = mx.depends([queries], [cotangent])[0]
    return _gradient(primals, cotangent, output, _probabilities(late, keys, mask))


_keeping = with_gradient(_with_probabilities, _keeping_gradient)
_recomputing = with_gradient(_output, _recomputing_gradient)
