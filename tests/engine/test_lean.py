"""Our forward pass is mlx-lm's own for the layouts it takes, and it takes no others, whatever they are called."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models import (
    bitnet,
    cohere,
    gemma2,
    gemma3,
    gpt2,
    granite,
    llama,
    mistral3,
    olmo2,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    starcoder2,
)

from afs_mlx.engine.training.batches import batch_of, shared_tokens
from afs_mlx.engine.training.compute import attention, lean
from afs_mlx.engine.training.compute.layout import Layout
from afs_mlx.engine.training.compute.lean import LeanForward, is_lean
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.compute.padded import head_is_plain
from afs_mlx.engine.training.dropout import Keys
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe

VOCABULARY, WIDTH, BLOCKS = 130, 32, 3
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
}
RMS: dict[str, Any] = {**SIZES, "rms_norm_eps": 1e-6}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def made(model: nn.Module) -> nn.Module:
    """Weights large enough that every part shows; norms around one."""
    rng = np.random.default_rng(7)

    def noise(array: mx.array) -> mx.array:
        drawn = rng.normal(0, 0.25, array.shape).astype(np.float32)
        return mx.array(drawn + 1 if array.ndim == 1 else drawn) if mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map(noise, model.parameters()))
    return model


def llama_of(**more: Any) -> nn.Module:
    return made(llama.Model(llama.ModelArgs("llama", **{**RMS, **more})))


def qwen3_of(**more: Any) -> nn.Module:
    sizes = {**RMS, "head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1e4, **more}
    return made(qwen3.Model(qwen3.ModelArgs("qwen3", **sizes)))


LEAN: dict[str, Callable[[], nn.Module]] = {
    "llama": llama_of,
    "llama, wide heads": lambda: llama_of(head_dim=16),
    "llama, as many keys as queries": lambda: llama_of(num_key_value_heads=4),
    "llama, one key for all": lambda: llama_of(num_key_value_heads=1),
    "llama, biases, own head": lambda: llama_of(attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "llama, traditional rope": lambda: llama_of(rope_traditional=True),
    "llama 3.1's rope": lambda: llama_of(rope_scaling=LLAMA3_ROPE),
    "qwen2": lambda: made(qwen2.Model(qwen2.ModelArgs("qwen2", **RMS))),
    "qwen3": qwen3_of,
    "smollm3, some blocks without positions": lambda: made(smollm3.Model(smollm3.ModelArgs("smollm3", **RMS))),
}
TEXT = {**RMS, "model_type": "llama", "tie_word_embeddings": True}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GRANITE = {"logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.3}
GPT2 = {"n_ctx": 64, "n_embd": WIDTH, "n_head": 4, "n_layer": BLOCKS, "n_positions": 64, "vocab_size": VOCABULARY}
COHERE = {name: size for name, size in SIZES.items() if name != "max_position_embeddings"}
STABLE = {**COHERE, "rope_theta": 1e4, "use_qkv_bias": True, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}
GEMMA = {name: size for name, size in RMS.items() if name != "max_position_embeddings"}
STAR = {name: size for name, size in SIZES.items() if name != "max_position_embeddings"}


def gemma3_text() -> dict[str, Any]:
    sizes = {**GEMMA, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8.0, "sliding_window": 8}
    return {**sizes, "sliding_window_pattern": 2}


def unpacked_bitnet() -> nn.Module:
    """Its linear layers need a Metal kernel; plain ones keep the rest of the layout."""
    model = bitnet.Model(bitnet.ModelArgs("bitnet", **RMS))
    for block in model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.children().items()):
                if name.endswith("_proj"):
                    shape = (layer.in_features, layer.out_features)
                    setattr(part, name, nn.Linear(*shape, bias=False))
    return made(model)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "llama, sliding": lambda: llama_of(layer_types=SLIDING, sliding_window=4),
    "phi3": lambda: made(phi3.Model(phi3.ModelArgs("phi3", **RMS))),
    "granite": lambda: made(
        granite.Model(
            granite.ModelArgs("granite", **RMS, **GRANITE, attention_bias=False, mlp_bias=False, rope_theta=1e4)
        )
    ),
    "gemma2": lambda: made(gemma2.Model(gemma2.ModelArgs("gemma2", **GEMMA, head_dim=8))),
    "cohere": lambda: made(cohere.Model(cohere.ModelArgs("cohere", **COHERE))),
    "stablelm": lambda: made(stablelm.Model(stablelm.ModelArgs("stablelm", **STABLE))),
    "starcoder2": lambda: made(starcoder2.Model(starcoder2.ModelArgs("starcoder2", **STAR))),
    "bitnet": unpacked_bitnet,
    "olmo2": lambda: made(olmo2.Model(olmo2.ModelArgs("olmo2", **RMS))),
    "phi": lambda: made(phi.Model(phi.ModelArgs(**SIZES, partial_rotary_factor=0.5))),
    "gpt2": lambda: made(gpt2.Model(gpt2.ModelArgs("gpt2", **GPT2, layer_norm_epsilon=1e-5))),
    "mistral3": lambda: made(mistral3.Model(mistral3.ModelArgs("mistral3", {**TEXT}))),
    "gemma3": lambda: made(gemma3.Model(gemma3.ModelArgs("gemma3", gemma3_text(), vocab_size=VOCABULARY))),
}


def rows(*lengths: int, shared: int = 0, seed: int = 3) -> list[Row]:
    rng = np.random.default_rng(seed)
    start = rng.integers(1, VOCABULARY, shared)
    found = []
    for number, length in enumerate(lengths):
        tokens = np.concatenate([start, [number + 1], rng.integers(1, VOCABULARY, length - shared - 1)])
        weights = rng.choice([0, 1, 0.5], length)
        weights[: shared + 1], weights[shared + 1], weights[-1] = 0, 0, 1
        found.append(Row(tokens.astype(np.int32), weights))
    return found


def whole(model: nn.Module, row: Row) -> np.ndarray:
    """mlx-lm's own backbone on one row."""
    return np.array(model.model(mx.array(row.tokens[None]))[0].astype(mx.float32))


def forward_of(model: nn.Module, fast_exp: bool = True, recompute: bool = False) -> LeanForward:
    return LeanForward(model, Keys(mx.random.key(0)), fast_exp=fast_exp, recompute=recompute)


def close(mine: Any, theirs: Any, within: float = 1e-5) -> bool:
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    return mine.shape == theirs.shape and bool(np.linalg.norm(mine - theirs) < within * np.linalg.norm(theirs))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fast_exp", [False, True])
@pytest.mark.parametrize("name", LEAN)
def test_every_position_has_mlx_lms_hidden_state(name: str, fast_exp: bool, recompute: bool) -> None:
    model = LEAN[name]()
    assert is_lean(model)
    forward = forward_of(model, fast_exp, recompute)
    for sample in (rows(9, 21, 5), rows(7, 7), rows(12, 20, 14, shared=6), rows(11, shared=1)):
        shared = shared_tokens(sample)
        batch = batch_of(sample, range(len(sample)), shared)
        layout, tokens = Layout.of(batch), mx.array(batch.tokens)
        hidden = np.array(forward.norm(forward.run(forward.embed(tokens), layout, 0, forward.blocks)))
        start = shared
        for row, length in zip(sample, batch.lengths, strict=True):
            expected = whole(model, row)
            assert close(hidden[start : start + length], expected[shared : shared + length])
            start += int(length)
        if shared:
            assert close(hidden[:shared], whole(model, sample[0])[:shared])
        picked = mx.array(batch.positions)
        run = forward.run(forward.embed(tokens), layout, 0, forward.blocks, picked)
        assert close(forward.norm(run), hidden[batch.positions])


@pytest.mark.parametrize("depth", range(1, BLOCKS + 1))
@pytest.mark.parametrize("name", LEAN)
def test_frozen_blocks_after_the_shared_tokens_give_the_same(name: str, depth: int) -> None:
    model, sample = LEAN[name](), rows(12, 20, 14, shared=6)
    forward, shared = forward_of(model), 6
    batch = batch_of(sample, [2, 0, 1], shared)
    tokens, layout = mx.array(batch.tokens), Layout.of(batch)
    expected = np.array(forward.run(forward.embed(tokens), layout, 0, depth))
    first, kept = forward.run_shared(tokens[:shared], depth)
    assert len(kept) == depth
    own = forward.run_after(forward.embed(tokens[shared:]), layout, kept)
    assert close(mx.concatenate([first, own]), expected)


def test_rows_too_long_for_stored_probabilities_have_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = LEAN["qwen3"](), rows(40, 70, 30, shared=10)
    batch = batch_of(sample, range(3), 10)
    layout, tokens = Layout.of(batch), mx.array(batch.tokens)
    forward = forward_of(model)
    short = np.array(forward.run(forward.embed(tokens), layout, 0, BLOCKS))
    monkeypatch.setattr(attention, "STORED_CELLS", 0)
    assert close(forward.run(forward.embed(tokens), layout, 0, BLOCKS), short)


def test_halves_keep_their_own_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """The polynomial knows float32 alone."""
    model, sample = LEAN["llama"](), rows(9, 14)
    model.set_dtype(mx.bfloat16)
    monkeypatch.setattr(lean, "swiglu", lambda *arrays: pytest.fail("float32 alone"))
    batch = batch_of(sample, [0, 1])
    forward = forward_of(model)
    hidden = forward.norm(forward.run(forward.embed(mx.array(batch.tokens)), Layout.of(batch), 0, BLOCKS))
    assert hidden.dtype == mx.bfloat16
    expected = np.concatenate([whole(model, row)[:n] for row, n in zip(sample, batch.lengths, strict=True)])
    assert close(np.array(hidden.astype(mx.float32)), expected, 3e-2)


# Which way


def losses_of(model: nn.Module, sample: Sequence[Row], **speed: Any) -> tuple[Losses, float]:
    """The loss of all rows under these switches."""
    model.freeze()
    losses = Losses(model, Recipe.model_validate({"layers": 1, "speed": speed}), sample, None, "")
    losses.prepare(lambda event: None)
    batch = losses.batch(list(range(len(sample))))
    return losses, losses.loss(model.trainable_parameters(), batch).item()


def reference(model: nn.Module, sample: Sequence[Row]) -> float:
    """The model as mlx-lm calls it, float64 behind its logits."""
    total = 0.0
    for row in sample:
        logits = np.array(model(mx.array(row.tokens[None])).astype(mx.float32))[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        total -= sum(row.weights[i] * log_p[i - 1, row.tokens[i]] for i in np.flatnonzero(row.weights))
    return float(total)


@pytest.mark.parametrize("name", LEAN)
def test_what_we_know_is_taken(name: str) -> None:
    model, sample = LEAN[name](), rows(12, 20, 14, shared=6)
    losses, loss = losses_of(model, sample)
    assert (losses.ways.lean, losses.ways.shared, losses.ways.frozen_blocks) == (True, 6, BLOCKS - 1)
    assert loss == pytest.approx(reference(model, sample), rel=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_model_is_called_as_it_is(name: str) -> None:
    """Its own scaling, caps, windows and norms: whatever our pass does not do."""
    model, sample = OTHERS[name](), rows(12, 20, 14, shared=6)
    expected = reference(model, sample)
    assert expected / sum(float(row.weights.sum()) for row in sample) > 0.5
    losses, loss = losses_of(model, sample)
    assert not losses.ways.lean
    assert (losses.ways.shared, losses.ways.frozen_blocks) == (0, 0)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_all_switches_off_is_mlx_lms_own_model(name: str) -> None:
    model, sample = OTHERS[name](), rows(12, 20, 14, shared=6)
    off = {"lean": False, "supervised_head": False, "keep_frozen": False, "shared_prompt": False, "fast_exp": False}
    _, loss = losses_of(model, sample, **off)
    assert loss == pytest.approx(reference(model, sample), rel=1e-5)


@pytest.mark.parametrize(("name", "plain"), [("granite", False), ("gemma2", False), ("cohere", False), ("phi3", True)])
def test_a_head_that_is_scaled_or_capped_is_left_to_the_model(name: str, plain: bool) -> None:
    model = OTHERS[name]()
    assert head_is_plain(model) is plain
    assert losses_of(model, rows(9, 14))[0].ways.supervised_head is plain
