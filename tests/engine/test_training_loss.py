"""The loss against a plain computation of every logit; prefix, checkpointing and accumulation change no gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama, phi3, qwen3

from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.batches import Batch, batch_of
from afs_mlx.engine.training.events import Stepped, TrainingEvent, Validated
from afs_mlx.engine.training.frozen_prefix import FrozenPrefix
from afs_mlx.engine.training.loss import summed_loss
from afs_mlx.engine.training.rows import Row, TokenisedSet
from afs_mlx.schema.recipe import Recipe

VOCABULARY = 120
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
}
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def made(model: nn.Module) -> nn.Module:
    """Weights large enough that the logits differ."""
    rng = np.random.default_rng(7)
    noise = tree_map(lambda a: mx.array(rng.normal(0, 0.2, a.shape).astype(np.float32)), model.parameters())
    model.update(noise)
    return model


FAMILIES: dict[str, Callable[[Path], nn.Module]] = {
    "qwen2, tied": lambda base: load_base(base).model,
    "llama, own head": lambda _: made(llama.Model(llama.ModelArgs("llama", **SIZES, tie_word_embeddings=False))),
    "llama, sliding": lambda _: made(
        llama.Model(llama.ModelArgs("llama", **SIZES, layer_types=SLIDING, sliding_window=4))
    ),
    "qwen3": lambda _: made(
        qwen3.Model(qwen3.ModelArgs("qwen3", **SIZES, head_dim=8, tie_word_embeddings=True, rope_theta=1e4))
    ),
}


def rows(*lengths: int) -> list[Row]:
    """Rows whose supervised parts are of different sizes, in the middle and at the end."""
    rng = np.random.default_rng(3)
    found = []
    for length in lengths:
        supervised = rng.random(length) < 0.5
        supervised[:2], supervised[-1] = False, True
        found.append(Row(rng.integers(1, VOCABULARY, length).astype(np.int32), supervised))
    return found


def adapted(model: nn.Module, **recipe: Any) -> nn.Module:
    """The model with adapters that are not zero, ready to train."""
    lora.attach(model, Recipe(rank=4, alpha=8, **recipe))
    rng = np.random.default_rng(11)
    for name, array in lora.adapter_weights(model).items():
        model.load_weights([(name, mx.array(rng.normal(0, 0.1, array.shape).astype(np.float32)))], strict=False)
    model.train()
    return model


def reference(model: nn.Module, rows: list[Row]) -> float:
    """Every logit of every row on its own, no padding, log-softmax in float64."""
    total = 0.0
    for row in rows:
        logits = np.array(model(mx.array(row.tokens[None])).astype(mx.float32))[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        total -= sum(log_p[i - 1, row.tokens[i]] for i in np.flatnonzero(row.supervised) if i > 0)
    return float(total)


def gradients(model: nn.Module, batch: Batch, *rest: Any) -> tuple[float, dict[str, np.ndarray]]:
    loss, grads = nn.value_and_grad(model, summed_loss)(model, batch, *rest)
    return loss.item(), {name: np.array(array) for name, array in tree_flatten(grads)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Each array to a hundred-thousandth of its norm; nothing may be zero throughout."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        norm = np.linalg.norm(array)
        assert norm > 0, name
        assert np.linalg.norm(found[name] - array) < 1e-4 * norm, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_a_plain_computation(tiny_base: Path, family: str) -> None:
    model = adapted(FAMILIES[family](tiny_base))
    sample = rows(9, 23, 14)
    batch = batch_of(sample)
    assert summed_loss(model, batch).item() == pytest.approx(reference(model, sample), rel=1e-5)

    naive = nn.losses.cross_entropy(
        model(mx.array(batch.inputs)).astype(mx.float32).reshape(-1, model.args.vocab_size)[mx.array(batch.positions)],
        mx.array(batch.targets),
        reduction="sum",
    )
    assert summed_loss(model, batch).item() == pytest.approx(naive.item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kept_prefix_changes_neither_loss_nor_gradient(tiny_base: Path, family: str) -> None:
    model = adapted(FAMILIES[family](tiny_base), layers=2)
    batch = batch_of(rows(9, 23, 14))
    prefix = FrozenPrefix(model, 2, budget_bytes=10_000_000)
    assert prefix.depth == 2
    plain_loss, plain = gradients(model, batch)
    for _ in range(2):  # computed, then kept
        loss, kept = gradients(model, batch, prefix, prefix.hidden(("train", 0), batch))
        assert loss == pytest.approx(plain_loss, rel=1e-6)
        assert_same(kept, plain)
    assert len(model.layers) == 4
    assert isinstance(model.model.norm, nn.RMSNorm)


def test_the_prefix_is_computed_once_within_its_budget_and_anew_beyond_it(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(load_base(tiny_base).model, layers=2)
    first, second = batch_of(rows(9, 12)), batch_of(rows(20))
    calls: list[int] = []
    backbone = type(model.model)
    run = backbone.__call__
    monkeypatch.setattr(backbone, "__call__", lambda self, *a, **k: calls.append(1) or run(self, *a, **k))

    size = 2 * 11 * 64 * 4  # rows · (longest - 1) · width · float32
    prefix = FrozenPrefix(model, 2, budget_bytes=size)
    kept = prefix.hidden(("train", 0), first)
    assert prefix.hidden(("train", 0), first) is kept
    assert (len(calls), prefix.kept_bytes) == (1, size)
    one, two = prefix.hidden(("train", 1), second), prefix.hidden(("train", 1), second)
    assert (len(calls), prefix.kept_bytes) == (3, size)
    assert mx.array_equal(one, two)
    prefix.hidden(("valid", 0), first)
    assert len(calls) == 4, "a validation batch of the same number is another batch"


@pytest.mark.parametrize("layers", [-1, 4])
def test_there_is_no_prefix_when_every_block_is_trained(tiny_base: Path, layers: int) -> None:
    assert FrozenPrefix(load_base(tiny_base).model, layers, 1).depth == 0


def test_there_is_no_prefix_for_a_backbone_that_cannot_be_split() -> None:
    model = phi3.Model(phi3.ModelArgs("phi3", **SIZES))
    assert FrozenPrefix(model, 2, 1).depth == 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(tiny_base: Path, monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    """With dropout the backward pass has to drop what the forward pass dropped."""
    model = adapted(load_base(tiny_base).model, dropout=dropout)
    batch = batch_of(rows(9, 23, 14))
    with trainer._checkpointed(model, seed=1):
        loss, found = gradients(model, batch)
    with monkeypatch.context() as patch, trainer._checkpointed(model, seed=1):
        patch.setattr(mx, "checkpoint", lambda block: block)  # the same call, nothing recomputed
        expected_loss, expected = gradients(model, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(found, expected)
    if dropout == 0:
        assert_same(found, gradients(model, batch)[1])
    else:
        with trainer._checkpointed(model, seed=2):
            assert gradients(model, batch)[0] != pytest.approx(loss, rel=1e-4), "the seed decides what is dropped"


def test_the_block_class_is_restored_also_after_an_error(tiny_base: Path) -> None:
    model = load_base(tiny_base).model
    block = type(model.layers[0])
    original = block.__call__
    seen: list[bool] = []

    def fail() -> None:
        with trainer._checkpointed(model, seed=0):
            seen.append(block.__call__ is original)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [False]
    assert block.__call__ is original


def test_micro_batches_add_up_to_the_big_batch(tiny_base: Path) -> None:
    model = adapted(load_base(tiny_base).model)
    sample = rows(8, 30, 12, 21)
    loss, whole = gradients(model, batch_of(sample))
    parts = [gradients(model, batch_of(sample[i : i + 1])) for i in range(4)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    assert_same({name: sum(grads[name] for _, grads in parts) for name in whole}, whole)


def test_a_step_weighs_each_token_the_same_however_it_is_cut(tiny_base: Path) -> None:
    """The trainer's own step: four rows one by one, and all at once."""
    sample = TokenisedSet(rows(8, 30, 12, 21), dropped=0)

    def first_step(**cut: int) -> tuple[Stepped, dict[str, np.ndarray]]:
        recipe = Recipe(rank=4, alpha=8, epochs=1, learning_rate=1e-4, warmup_fraction=0, **cut)
        model = load_base(tiny_base).model
        lora.attach(model, recipe)
        events: list[TrainingEvent] = []
        trained = trainer.train(model, recipe, sample, sample, events.append, lambda: False)
        assert trained.best_step == 1
        (step,) = [event for event in events if isinstance(event, Stepped)]
        return step, {name: np.array(array) for name, array in trained.weights.items()}

    one_by_one, small = first_step(batch_tokens=1, accumulation=4)
    at_once, big = first_step(batch_tokens=1000, accumulation=1)
    assert one_by_one.supervised_tokens == at_once.supervised_tokens == sample.supervised_tokens
    assert one_by_one.loss == pytest.approx(at_once.loss, rel=1e-5)
    assert one_by_one.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-4)
    # Adam's first step is nearly a sign, which turns over where a gradient is nothing but rounding.
    close = np.concatenate([np.isclose(small[name], big[name], atol=1e-6).ravel() for name in big])
    assert close.mean() > 0.999

    means = [
        summed_loss(load_base(tiny_base).model, batch_of([row])).item() / row.supervised_tokens for row in sample.rows
    ]
    assert np.mean(means) != pytest.approx(at_once.loss, rel=1e-3), "these rows would not tell a mean of means"


def test_validation_is_the_same_however_it_is_cut(tiny_base: Path) -> None:
    sample = TokenisedSet(rows(8, 30, 12, 21), dropped=0)
    losses = []
    for batch_tokens in (1, 1000):
        recipe = Recipe(rank=4, alpha=8, epochs=1, layers=2, batch_tokens=batch_tokens)
        model = load_base(tiny_base).model
        lora.attach(model, recipe)
        events: list[TrainingEvent] = []
        trainer.train(model, recipe, sample, sample, events.append, lambda: True)
        losses.append(next(event.loss for event in events if isinstance(event, Validated)))
    expected = reference(load_base(tiny_base).model, sample.rows) / sample.supervised_tokens
    assert losses == pytest.approx([expected] * 2, rel=1e-5)
