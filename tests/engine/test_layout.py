"""Side by side and back: every token where it belongs, and nothing out of the padding in a gradient."""

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.engine.training.batches import Batch
from afs_mlx.engine.training.compute.layout import Layout

LENGTHS = {"mixed": [3, 7, 1, 5], "equal": [4, 4, 4], "one row": [6], "one token": [1], "long last": [1, 2, 9]}


def layout_of(lengths: list[int], shared: int = 0) -> Layout:
    n = shared + sum(lengths)
    nothing = np.zeros(0, dtype=np.int32)
    tokens, rows = np.arange(n, dtype=np.int32), tuple(range(len(lengths)))
    return Layout.of(Batch(rows, tokens, shared, np.array(lengths, dtype=np.int32), nothing, nothing, nothing))


def flat(lengths: list[int], *tail: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0, 1, (sum(lengths), *tail)).astype(np.float32))


def spans(lengths: list[int]) -> list[slice]:
    ends = np.cumsum(lengths)
    return [slice(int(end) - n, int(end)) for end, n in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("tail", [(), (4,), (2, 3)])
@pytest.mark.parametrize("name", LENGTHS)
def test_rows_stand_on_the_left_and_the_padding_holds_tokens_of_the_same_row(name: str, tail: tuple[int, ...]) -> None:
    lengths = LENGTHS[name]
    tokens = flat(lengths, *tail)
    padded = np.array(layout_of(lengths).side_by_side(tokens))
    assert padded.shape == (len(lengths), max(lengths), *tail)
    for line, span in zip(padded, spans(lengths), strict=True):
        own = np.array(tokens)[span]
        assert np.array_equal(line[: len(own)], own)
        assert all(any(np.array_equal(place, token) for token in own) for place in line[len(own) :])


@pytest.mark.parametrize("tail", [(), (4,), (2, 3)])
@pytest.mark.parametrize("name", LENGTHS)
def test_there_and_back_is_where_it_began(name: str, tail: tuple[int, ...]) -> None:
    layout, tokens = layout_of(LENGTHS[name]), flat(LENGTHS[name], *tail)
    assert mx.array_equal(layout.one_after_the_other(layout.side_by_side(tokens)), tokens)


def test_equal_rows_need_no_index() -> None:
    assert layout_of([4, 4], shared=3) == Layout(3, 2, None, None, None)
    assert layout_of([4, 5]).beside is not None


@pytest.mark.parametrize("name", LENGTHS)
def test_the_gradient_of_coming_back_is_zero_in_the_padding(name: str) -> None:
    """It would go on, through attention, into real tokens."""
    lengths = LENGTHS[name]
    layout, cotangent = layout_of(lengths), flat(lengths, 4, seed=1)
    padded = mx.zeros((len(lengths), max(lengths), 4))
    _, (found,) = mx.vjp(layout.one_after_the_other, [padded], [cotangent])
    assert found.shape == padded.shape
    for line, span in zip(np.array(found), spans(lengths), strict=True):
        own = np.array(cotangent)[span]
        assert np.array_equal(line[: len(own)], own)
        assert not line[len(own) :].any()


@pytest.mark.parametrize("name", LENGTHS)
def test_the_gradient_of_laying_out_reads_the_real_places(name: str) -> None:
    lengths = LENGTHS[name]
    layout = layout_of(lengths)
    cotangent = mx.array(np.random.default_rng(2).normal(0, 1, (len(lengths), max(lengths), 4)).astype(np.float32))
    _, (found,) = mx.vjp(layout.side_by_side, [flat(lengths, 4)], [cotangent])
    expected = np.concatenate([np.array(cotangent)[row, :n] for row, n in enumerate(lengths)])
    assert np.array_equal(np.array(found), expected)


@pytest.mark.parametrize("name", LENGTHS)
def test_through_causal_attention_the_gradients_are_those_of_rows_on_their_own(name: str) -> None:
    """What the two hand-written gradients promise together, against mlx's own on each row alone."""
    lengths, rng = LENGTHS[name], np.random.default_rng(3)
    layout = layout_of(lengths)
    inputs = [flat(lengths, 2, 8, seed=seed) for seed in range(3)]
    cotangent = mx.array(rng.normal(0, 1, (sum(lengths), 2, 8)).astype(np.float32))

    def attend(*three: mx.array) -> mx.array:
        queries, keys, values = (each.swapaxes(1, 2) for each in three)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask="causal").swapaxes(1, 2)

    def together(*three: mx.array) -> mx.array:
        return layout.one_after_the_other(attend(*map(layout.side_by_side, three)))

    def apart(*three: mx.array) -> mx.array:
        return mx.concatenate([attend(*(each[span][None] for each in three))[0] for span in spans(lengths)])

    (values,), found = mx.vjp(together, inputs, [cotangent])
    (expected_values,), expected = mx.vjp(apart, inputs, [cotangent])
    assert mx.allclose(values, expected_values, atol=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        assert mx.allclose(mine, theirs, atol=1e-5)


def test_halves_keep_their_width() -> None:
    lengths = LENGTHS["mixed"]
    layout, tokens = layout_of(lengths), flat(lengths, 4).astype(mx.bfloat16)
    padded = layout.side_by_side(tokens)
    _, (found,) = mx.vjp(layout.one_after_the_other, [padded], [tokens])
    assert padded.dtype == found.dtype == mx.bfloat16
