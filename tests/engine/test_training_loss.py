"""The loss against a plain computation of every logit; no switch, and no way to cut a batch, changes a gradient."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models import llama, phi3, qwen3

from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.compute.losses import Losses
from afs_mlx.engine.training.dropout import step_key
from afs_mlx.engine.training.events import Stepped, TrainingEvent, Validated
from afs_mlx.engine.training.rows import Row, TokenisedSet
from afs_mlx.schema.recipe import Recipe

VOCABULARY = 600  # three slices of the head at the smallest size
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
}
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
BLOCKS = 4
KEY = mx.random.key(5)
type Gradients = dict[str, np.ndarray]


def made(model: nn.Module) -> nn.Module:
    """Weights large enough that the logits differ."""
    rng = np.random.default_rng(7)
    noise = tree_map(lambda a: mx.array(rng.normal(0, 0.2, a.shape).astype(np.float32)), model.parameters())
    model.update(noise)
    return model


def own_head(**more: Any) -> nn.Module:
    return made(llama.Model(llama.ModelArgs("llama", **SIZES, tie_word_embeddings=False, **more)))


def packed(**quantisation: Any) -> nn.Module:
    model = own_head()
    nn.quantize(model, **quantisation)
    return model


def unpacked(model: nn.Module) -> nn.Module:
    """The same weights as plain arrays."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            packing = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            weight = mx.dequantize(module.weight, module.scales, module.get("biases"), **packing).astype(mx.float32)
            linear = isinstance(module, nn.QuantizedLinear)
            plain = nn.Linear(*weight.shape[::-1], bias=False) if linear else nn.Embedding(*weight.shape)
            plain.weight = weight
            found.append((path, plain))
    model.update_modules(tree_unflatten(found))
    return model


def biased_head() -> nn.Module:
    model = own_head()
    model.lm_head = nn.Linear(SIZES["hidden_size"], VOCABULARY, bias=True)
    return made(model)


def qwen3_model() -> nn.Module:
    return made(qwen3.Model(qwen3.ModelArgs("qwen3", **SIZES, head_dim=8, tie_word_embeddings=True, rope_theta=1e4)))


LEAN: dict[str, Callable[[Path], nn.Module]] = {
    "qwen2, tied": lambda base: load_base(base).model,
    "llama, own head": lambda _: own_head(),
    "llama, biases": lambda _: own_head(attention_bias=True, mlp_bias=True),
    "llama, head with a bias": lambda _: biased_head(),
    "llama, 4 bits": lambda _: packed(group_size=32, bits=4),
    "llama, mxfp4": lambda _: packed(group_size=32, bits=4, mode="mxfp4"),
    "qwen3": lambda _: qwen3_model(),
}
FALLBACK: dict[str, Callable[[Path], nn.Module]] = {
    "llama, sliding": lambda _: own_head(layer_types=SLIDING, sliding_window=4),
    "phi3": lambda _: made(phi3.Model(phi3.ModelArgs("phi3", **SIZES))),
}
FAMILIES = {**LEAN, **FALLBACK}

OFF: dict[str, Any] = {
    "lean": False,
    "supervised_head": False,
    "head_chunk": 0,
    "keep_frozen": False,
    "shared_prompt": False,
    "fast_exp": False,
    "compile": "off",
}
HEADS: tuple[dict[str, Any], ...] = ({"supervised_head": False}, {"head_chunk": 0}, {"head_chunk": 1})
# What may be kept in memory and on disk, as shares of all that the rows' frozen outputs take.
KEPT: dict[str, tuple[float, float] | None] = {
    "not kept": None,
    "in memory": (1, 0),
    "on disk": (0, 1),
    "half in memory": (0.5, 0),
    "half on disk": (0, 0.5),
}


def rows(*lengths: int, shared: int = 0) -> list[Row]:
    """Rows that begin with the same `shared` tokens; what counts is scattered behind them, at several weights."""
    rng = np.random.default_rng(3)
    start = rng.integers(1, VOCABULARY, shared)
    found = []
    for number, length in enumerate(lengths):
        weights = rng.choice([0, 0.25, 1, 2.5], length)
        weights[: shared + 1], weights[shared + 1], weights[-1] = 0, 0, 1.5
        tokens = np.concatenate([start, [number + 1], rng.integers(1, VOCABULARY, length - shared - 1)])
        found.append(Row(tokens.astype(np.int32), weights))
    return found


def answers_alone(count: int, length: int) -> list[Row]:
    """Rows that differ in nothing but the last token, which is learnt."""
    tokens = np.random.default_rng(4).integers(1, VOCABULARY, length).astype(np.int32)
    weights = np.arange(length) == length - 1
    return [Row(np.append(tokens[:-1], number + 1).astype(np.int32), weights) for number in range(count)]


SAMPLES: dict[str, list[Row]] = {
    "nothing shared": rows(9, 23, 14, 12),
    "one token shared": rows(9, 23, 14, 12, shared=1),
    "many shared": rows(13, 25, 14, 20, shared=9),
    "all but the end shared": answers_alone(4, 12),
    "equally long": rows(10, 10, 10, 10, shared=2),
    "one row": rows(12),
}
SHARED = dict(zip(SAMPLES, (0, 1, 9, 10, 2, 10), strict=True))


def recipe_of(layers: int = -1, grad_checkpoint: bool = False, **settings: Any) -> Recipe:
    own = {name: settings.pop(name) for name in ("method", "dropout", "batch_tokens") if name in settings}
    start = {"rank": 4, "alpha": 8, "layers": layers, "grad_checkpoint": grad_checkpoint, **own}
    return Recipe.model_validate({**start, "speed": settings})


def adapted(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with adapters that are not zero, ready to train."""
    lora.attach(model, recipe)
    rng = np.random.default_rng(11)
    for name, array in lora.adapter_weights(model).items():
        noise = mx.array(rng.normal(0, 0.1, array.shape).astype(np.float32))
        model.load_weights([(name, noise + (array if name.endswith(".m") else 0))], strict=False)
    return model


class Way:
    """A model under one choice of switches: its losses and gradients over the sample's rows."""

    def __init__(self, model: nn.Module, sample: Sequence[Row], recipe: Recipe, folder: Path | None = None) -> None:
        self.model, self.rows = adapted(model, recipe), sample
        self.losses = Losses(model, recipe, sample, folder, "b" * 64)
        self.losses.prepare(lambda event: None)

    def gradients(self, numbers: Sequence[int], key: mx.array = KEY) -> tuple[float, Gradients]:
        parameters = self.model.trainable_parameters()
        with self.losses.running():
            loss, found = self.losses.loss_and_gradients(parameters, self.losses.batch(numbers), key)
            result = float(loss.item()), {name: np.array(array) for name, array in tree_flatten(found)}
        self.model.update(parameters)  # a compiled step leaves its placeholders there
        return result

    def loss(self, numbers: Sequence[int]) -> float:
        parameters = self.model.trainable_parameters()
        with self.losses.running():
            return float(self.losses.loss(parameters, self.losses.batch(numbers)).item())


def everything(sample: Sequence[Row]) -> list[int]:
    """In an order of their own: a batch is not the rows as they stand."""
    return list(reversed(range(len(sample))))


def budget(sample: Sequence[Row], shared: int, width: int, shares: tuple[float, float]) -> dict[str, float]:
    """memory_gb and disk_gb for shares of what the frozen outputs take."""
    size = sum(int(np.flatnonzero(row.supervised)[-1]) - shared for row in sample) * width * 4
    return {"memory_gb": shares[0] * size / 1e9, "disk_gb": shares[1] * size / 1e9}


def reference(model: nn.Module, rows: Sequence[Row]) -> float:
    """Every logit of every row on its own, no padding, log-softmax in float64."""
    total = 0.0
    for row in rows:
        logits = np.array(model(mx.array(row.tokens[None])).astype(mx.float32))[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        total -= sum(row.weights[i] * log_p[i - 1, row.tokens[i]] for i in np.flatnonzero(row.weights))
    return float(total)


def assert_same(found: Gradients, expected: Gradients, where: object = "", within: float = 1e-4) -> None:
    """Each array to a share of its norm; nothing may be zero throughout."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        norm = np.linalg.norm(array)
        assert norm > 0, name
        assert np.linalg.norm(found[name] - array) < within * norm, (where, name)


def plain(make: Callable[[], nn.Module], sample: Sequence[Row], **settings: Any) -> tuple[float, Gradients]:
    """With every switch off."""
    return Way(make(), sample, recipe_of(**OFF, **settings)).gradients(everything(sample))


# The loss


@pytest.mark.parametrize("shape", SAMPLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_a_plain_computation(tiny_base: Path, family: str, shape: str) -> None:
    sample = SAMPLES[shape]
    for settings in ({}, OFF):
        way = Way(FAMILIES[family](tiny_base), sample, recipe_of(layers=2, **settings))
        found = way.loss(everything(sample)), way.gradients(everything(sample))[0]
        assert found == pytest.approx((reference(way.model, sample),) * 2, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_layouts_take_the_lean_way_and_others_mlx_lms_own(tiny_base: Path, family: str) -> None:
    ways = Way(FAMILIES[family](tiny_base), SAMPLES["many shared"], recipe_of(layers=2)).losses.ways
    lean = family in LEAN
    assert (ways.lean, ways.fast_exp, ways.compiled) == (lean, lean, False)
    assert (ways.shared, ways.frozen_blocks) == ((9, 2) if lean else (0, 0))
    assert ways.supervised_head


def test_without_padding_inside_the_backbone_no_pad_can_be_learnt(tiny_base: Path) -> None:
    sample = SAMPLES["nothing shared"]
    way = Way(load_base(tiny_base).model, sample, recipe_of())
    batch = way.losses.batch([0, 1])
    assert len(batch.tokens) == sum(int(np.flatnonzero(row.supervised)[-1]) for row in sample[:2])


# Every switch


def combinations() -> Iterator[dict[str, Any]]:
    """Every combination that the lean way knows."""
    for head, kept, fast, compiled, again in itertools.product(
        HEADS, KEPT, (True, False), ("on", "off"), (True, False)
    ):
        yield {**head, "kept": kept, "fast_exp": fast, "compile": compiled, "grad_checkpoint": again}


def kept_way(base: Path, shape: str, kept: str, folder: Path, **settings: Any) -> Way:
    """Two blocks trained, so much of what the others give kept."""
    shares = KEPT[kept]
    settings |= {"keep_frozen": shares is not None} | (
        budget(SAMPLES[shape], SHARED[shape], 64, shares) if shares else {}
    )
    # Fewer rows than all in a group: they are kept in other groups than they are asked for.
    return Way(load_base(base).model, SAMPLES[shape], recipe_of(layers=2, batch_tokens=48, **settings), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "every"), [("nothing shared", 5), ("one token shared", 7), ("many shared", 1)])
def test_no_combination_of_switches_changes_a_gradient(tiny_base: Path, tmp_path: Path, shape: str, every: int) -> None:
    order = everything(SAMPLES[shape])
    expected_loss, expected = plain(lambda: load_base(tiny_base).model, SAMPLES[shape], layers=2)
    for number, chosen in enumerate(itertools.islice(combinations(), 0, None, every)):
        way = kept_way(tiny_base, shape, folder=tmp_path / str(number), **chosen)
        assert (way.losses.ways.lean, way.losses.ways.shared) == (True, SHARED[shape])
        assert way.loss(order) == pytest.approx(expected_loss, rel=1e-5), chosen
        loss, found = way.gradients(order)
        assert loss == pytest.approx(expected_loss, rel=1e-5), chosen
        assert_same(found, expected, chosen)


@pytest.mark.parametrize("again", ["loss", "gradients"])
def test_rows_beyond_the_budget_are_run_also_after_a_compiled_step(tiny_base: Path, tmp_path: Path, again: str) -> None:
    settings = {"compile": "on", "grad_checkpoint": True}
    way = kept_way(tiny_base, "nothing shared", "half in memory", tmp_path, **settings)
    order = everything(way.rows)
    loss, _ = way.gradients(order)
    found = way.loss(order) if again == "loss" else way.gradients(order)[0]
    assert found == pytest.approx(loss, rel=1e-5)


OTHERS: dict[str, dict[str, Any]] = {
    "default": {},
    "small slices, fast exponentials off": {"head_chunk": 1, "fast_exp": False},
    "compiled, recomputed": {"compile": "on", "grad_checkpoint": True, "head_chunk": 1},
    "all logits, all recomputed": {"supervised_head": False, "keep_frozen": False, "grad_checkpoint": True},
    "nothing shared": {"shared_prompt": False, "compile": "on"},
}


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, "lora") for family in FAMILIES), ("qwen2, tied", "dora"), ("llama, 4 bits", "dora"), ("phi3", "dora")],
)
@pytest.mark.parametrize("shape", ["many shared", "all but the end shared", "equally long", "one row"])
def test_other_models_and_rows_have_the_same_gradients_too(
    tiny_base: Path, family: str, shape: str, method: str
) -> None:
    sample = SAMPLES[shape]
    order = everything(sample)
    expected_loss, expected = plain(lambda: FAMILIES[family](tiny_base), sample, layers=2, method=method)
    for name, settings in OTHERS.items():
        way = Way(FAMILIES[family](tiny_base), sample, recipe_of(layers=2, method=method, **settings))
        loss, found = way.gradients(order)
        assert loss == pytest.approx(expected_loss, rel=1e-5), name
        assert_same(found, expected, name)


@pytest.mark.parametrize("settings", [{}, OFF, {"compile": "on"}], ids=["default", "off", "compiled"])
@pytest.mark.parametrize("quantisation", [{"bits": 4}, {"bits": 8}, {"bits": 4, "mode": "mxfp4"}])
def test_a_packed_base_learns_as_the_same_weights_unpacked(settings: dict[str, Any], quantisation: Any) -> None:
    sample = SAMPLES["many shared"]
    whole = unpacked(packed(group_size=32, **quantisation))
    expected_loss, expected = plain(lambda: whole, sample, layers=2)
    way = Way(packed(group_size=32, **quantisation), sample, recipe_of(layers=2, **{"head_chunk": 1, **settings}))
    loss, found = way.gradients(everything(sample))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_same(found, expected)


# Dropout


PATHS: dict[str, dict[str, Any]] = {
    "lean": {},
    "lean, shared": {"shared_prompt": True, "keep_frozen": False},
    "lean, compiled": {"compile": "on"},
    "mlx-lm's": {"lean": False},
    "mlx-lm's, compiled": {"lean": False, "compile": "on"},
}


def dropping(base: Path, **settings: Any) -> Way:
    sample = SAMPLES["many shared"]
    return Way(load_base(base).model, sample, recipe_of(layers=3, dropout=0.3, **{"shared_prompt": False, **settings}))


@pytest.mark.parametrize("path", PATHS)
def test_recomputing_drops_what_the_forward_pass_dropped(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    found_loss, found = dropping(tiny_base, grad_checkpoint=True, **PATHS[path]).gradients([0, 1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(mx, "checkpoint", lambda block: block)  # the same calls, nothing recomputed
        loss, expected = dropping(tiny_base, grad_checkpoint=True, **PATHS[path]).gradients([0, 1, 2, 3])
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_under_dropout_are_slopes_of_the_loss_for_that_key(tiny_base: Path, path: str, again: bool) -> None:
    """Along the gradient itself and along noise: a mask that differs between the passes would show in both."""
    way = dropping(tiny_base, grad_checkpoint=again, **PATHS[path])
    _, gradients = way.gradients([0, 1, 2, 3])
    start = lora.adapter_weights(way.model)
    rng = np.random.default_rng(8)
    norm = np.sqrt(sum(float((array**2).sum()) for array in gradients.values()))
    directions = [
        {name: array / norm for name, array in gradients.items()},
        {name: rng.normal(0, 1e-2, array.shape) for name, array in gradients.items()},
    ]

    def loss_at(direction: Gradients, distance: float) -> float:
        moved = [
            (name, array + mx.array((distance * direction[name]).astype(np.float32))) for name, array in start.items()
        ]
        way.model.load_weights(moved, strict=False)
        return way.gradients([0, 1, 2, 3])[0]

    for direction in directions:
        slope = (loss_at(direction, 1e-2) - loss_at(direction, -1e-2)) / 2e-2
        expected = sum(float((array * direction[name]).sum()) for name, array in gradients.items())
        assert slope == pytest.approx(expected, rel=1e-2, abs=1e-3 * norm)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("path", PATHS)
def test_a_key_gives_its_mask_each_time_and_another_key_another(tiny_base: Path, path: str, again: bool) -> None:
    way = dropping(tiny_base, grad_checkpoint=again, **PATHS[path])
    keys = [step_key(0, step, part) for step, part in ((1, 0), (2, 0), (1, 1))] + [step_key(1, 1, 0)]
    first = [way.gradients([0, 1, 2, 3], key)[0] for key in keys]
    assert len({round(loss, 3) for loss in first}) == len(keys), "another step, part or seed drops others"
    fresh = dropping(tiny_base, grad_checkpoint=again, **PATHS[path])
    assert [fresh.gradients([0, 1, 2, 3], key)[0] for key in reversed(keys)] == first[::-1]
    assert way.loss([0, 1, 2, 3]) == pytest.approx(reference(way.model.eval(), way.rows), rel=1e-5), (
        "nothing is dropped"
    )


def test_compiling_changes_no_mask(tiny_base: Path) -> None:
    compiled, called = dropping(tiny_base, compile="on"), dropping(tiny_base)
    batch = compiled.losses.batch([0, 2, 3])
    for step in (1, 2):
        parameters, key = called.model.trainable_parameters(), step_key(0, step, 0)
        loss, found = called.losses.loss_and_gradients(parameters, batch, key)
        expected = {name: np.array(array) for name, array in tree_flatten(found)}
        again, same = compiled.gradients([0, 2, 3], key)
        assert again == pytest.approx(loss.item(), rel=1e-6)
        assert_same(same, expected)


def test_dropout_keeps_the_mean_and_drops_its_share(tiny_base: Path) -> None:
    way = dropping(tiny_base)
    drop = way.model.train().layers[-1].self_attn.q_proj.dropout
    way.losses._keys.current = mx.random.key(9)
    dropped = np.array(drop(mx.ones((200, 200))))
    assert np.unique(dropped).tolist() == pytest.approx([0, 1 / 0.7])
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert np.array(drop(mx.ones((200, 200)))).tolist() != dropped.tolist(), "each place draws its own"


def test_a_second_training_of_a_model_draws_its_own_masks(tiny_base: Path) -> None:
    first = dropping(tiny_base)
    second = Losses(first.model, recipe_of(layers=3, dropout=0.3), first.rows, None, "")
    second.prepare(lambda event: None)
    parameters, batch = first.model.trainable_parameters(), second.batch([0, 1, 2, 3])
    losses = [second.loss_and_gradients(parameters, batch, mx.random.key(n))[0].item() for n in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


# However rows are cut


@pytest.mark.parametrize("settings", [{}, OFF, {"compile": "on"}], ids=["default", "off", "compiled"])
def test_micro_batches_add_up_to_the_big_batch(tiny_base: Path, settings: dict[str, Any]) -> None:
    sample = SAMPLES["many shared"]
    way = Way(load_base(tiny_base).model, sample, recipe_of(layers=2, **settings))
    loss, whole = way.gradients([0, 1, 2, 3])
    parts = [way.gradients(numbers) for numbers in ([2], [0, 3], [1])]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    assert_same({name: sum(grads[name] for _, grads in parts) for name in whole}, whole)


def trained(base: Path, sample: TokenisedSet, **settings: Any) -> tuple[list[TrainingEvent], trainer.Trained]:
    recipe = Recipe.model_validate(
        {"rank": 4, "alpha": 8, "epochs": 1, "learning_rate": 1e-4, "samples": 0, **settings}
    )
    model = load_base(base).model
    lora.attach(model, recipe)
    events: list[TrainingEvent] = []
    return events, trainer.train(model, recipe, sample, sample, events.append, lambda: False)


def test_a_step_weighs_each_token_the_same_however_it_is_cut(tiny_base: Path) -> None:
    """The trainer's own step: four rows one by one, and all at once."""
    sample = TokenisedSet(rows(8, 30, 12, 21), dropped=0)

    def first_step(**cut: int) -> tuple[Stepped, Gradients]:
        events, result = trained(tiny_base, sample, warmup_fraction=0, **cut)
        assert result.best_step == 1
        (step,) = [event for event in events if isinstance(event, Stepped)]
        return step, {name: np.array(array) for name, array in result.weights.items()}

    one_by_one, small = first_step(batch_tokens=1, accumulation=4)
    at_once, big = first_step(batch_tokens=1000, accumulation=1)
    assert one_by_one.supervised_tokens == at_once.supervised_tokens == sample.supervised_tokens
    assert one_by_one.loss == pytest.approx(at_once.loss, rel=1e-5)
    assert one_by_one.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-4)
    # Adam's first step is nearly a sign, which turns over where a gradient is nothing but rounding.
    close = np.concatenate([np.isclose(small[name], big[name], atol=1e-6).ravel() for name in big])
    assert close.mean() > 0.999

    model = load_base(tiny_base).model
    weight = sum(float(row.weights.sum()) for row in sample.rows)
    fresh = load_base(tiny_base).model
    lora.attach(fresh, recipe_of())
    losses = Losses(fresh, recipe_of(**OFF), sample.rows, None, "")
    _, summed = losses.loss_and_gradients(fresh.trainable_parameters(), losses.batch([0, 1, 2, 3]), KEY)
    norm = np.sqrt(sum(float((np.array(array) ** 2).sum()) for _, array in tree_flatten(summed)))
    assert at_once.grad_norm == pytest.approx(norm / weight, rel=1e-4), "of the mean over what the tokens weigh"
    assert at_once.loss == pytest.approx(reference(model, sample.rows) / weight, rel=1e-5)
    means = [reference(model, [row]) / float(row.weights.sum()) for row in sample.rows]
    assert np.mean(means) != pytest.approx(at_once.loss, rel=1e-3), "these rows would not tell a mean of means"


@pytest.mark.parametrize("speed", [{}, OFF], ids=["default", "off"])
def test_validation_is_the_same_however_it_is_cut(tiny_base: Path, speed: dict[str, Any]) -> None:
    sample = TokenisedSet(rows(8, 30, 12, 21), dropped=0)
    losses = []
    for batch_tokens in (1, 1000):
        events, _ = trained(tiny_base, sample, layers=2, batch_tokens=batch_tokens, speed=speed)
        losses.append(next(event.loss for event in events if isinstance(event, Validated)))
    weight = sum(float(row.weights.sum()) for row in sample.rows)
    assert losses == pytest.approx([reference(load_base(tiny_base).model, sample.rows) / weight] * 2, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lean", [True, False])
def test_the_block_class_is_restored_also_after_an_error(tiny_base: Path, dropout: float, lean: bool) -> None:
    model = load_base(tiny_base).model
    block = type(model.layers[0])
    original = block.__call__
    way = Way(model, SAMPLES["one row"], recipe_of(grad_checkpoint=True, lean=lean, dropout=dropout))
    seen: list[bool] = []

    def fail() -> None:
        with way.losses.running():
            seen.append(block.__call__ is original)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [lean], "our own pass needs no patch"
    assert block.__call__ is original
