"""The states of the bare base: what the layers say, independent of the batch, and nothing is left behind."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase, load_base
from afs_mlx.engine.inference.states import MAX_TOKENS, layer_count, query_states


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(tiny_base)


def by_hand(base: LoadedBase, text: str, layer: int) -> np.ndarray:
    """The layers one after the other, without padding."""
    from mlx_lm.models.base import create_attention_mask

    tokens = mx.array([base.tokenizer.encode(text, add_special_tokens=False)])
    inner = base.model.model
    hidden = inner.embed_tokens(tokens)
    for block in inner.layers[: layer + 1]:
        hidden = block(hidden, create_attention_mask(hidden, None), None)
    return np.array(hidden[0].mean(axis=0))


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_mean_over_a_texts_tokens(base: LoadedBase, layer: int) -> None:
    texts = ["lda #$00", "a longer text, so that the first one is padded in its batch", "x"]
    found = query_states(base, texts, layer)
    assert found.shape == (3, base.config["hidden_size"])
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, by_hand(base, text, layer), rtol=1e-4, atol=1e-5)


def test_a_folder_does_as_well(base: LoadedBase, tiny_base: Path) -> None:
    np.testing.assert_array_equal(query_states(tiny_base, ["inx"], 1), query_states(base, ["inx"], 1))


def test_the_model_is_as_before(base: LoadedBase) -> None:
    before = list(base.model.model.layers)
    query_states(base, ["one"], 2)
    assert [id(layer) for layer in base.model.model.layers] == [id(layer) for layer in before]


def test_any_text_has_a_state(base: LoadedBase) -> None:
    found = query_states(base, ["", "\x00", "\ud800", "<|im_start|>", "y" * 10**7], 1)
    assert np.isfinite(found).all()


def test_of_a_long_text_both_ends_are_read(base: LoadedBase) -> None:
    middle = "b " * MAX_TOKENS * 20
    same, other = f"a {middle}c", f"a {middle}d"
    found = query_states(base, [same, f"a {middle}{middle}c", other], 1)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], found[2])


def test_no_texts_no_states(base: LoadedBase) -> None:
    assert query_states(base, [], 1).shape == (0, base.config["hidden_size"])


def test_a_layer_that_is_not_there(base: LoadedBase) -> None:
    with pytest.raises(AfsError, match="there is no layer 4"):
        query_states(base, ["x"], layer_count(base))
