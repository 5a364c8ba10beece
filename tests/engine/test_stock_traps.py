"""mlx-lm 0.32.2's own trainer does these things without an error, and ours does not.

Each test shows the trap in mlx-lm's real code first. When one of these halves fails after an update of mlx-lm, the trap
is gone there, and what we do about it can be looked at again.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm import lora as stock_lora
from mlx_lm.models import llama
from mlx_lm.tuner import trainer as stock
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from afs_mlx.core.errors import AfsError
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.format import check_adapter_folder
from afs_mlx.engine.fusing.fusion import fuse
from afs_mlx.engine.fusing.options import StorageOptions
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.batches import batch_of, epoch_batches
from afs_mlx.engine.training.checkpoints import Checkpoints
from afs_mlx.engine.training.events import RolledBack, Stepped, StoppedEarly, TrainingEvent, Validated
from afs_mlx.engine.training.rows import Row, TokenisedSet, row_of, tokenise
from afs_mlx.engine.training.trainer import Surroundings
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.train import TrainConfig, train
from afs_mlx.schema.example import Example
from afs_mlx.schema.recipe import Recipe

type Sample = tuple[list[int], int]  # what mlx-lm's batches are made of: tokens, and where the answer begins

SEED = 3


def chat(*turns: str) -> dict[str, Any]:
    """A chat row, the first turn by the user."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}


def lognormal(count: int) -> list[int]:
    """Lengths in words as chats have them."""
    return np.random.default_rng(1).lognormal(4.2, 1.1, count).astype(int).clip(2, 1500).tolist()


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load(str(tiny_base))[1]


def samples(*answers: int, prompt: int = 6) -> list[Sample]:
    """Rows with answers of these lengths, the prompts all of one length."""
    rng = np.random.default_rng(2)
    return [(rng.integers(1, 600, prompt + answer).tolist(), prompt) for answer in answers]


def ours(rows: Sequence[Sample]) -> TokenisedSet:
    """The same rows as our trainer takes them."""
    found = []
    for tokens, offset in rows:
        found.append(Row(np.array(tokens, dtype=np.int32), np.arange(len(tokens)) >= offset))
    return TokenisedSet(found, dropped=0)


class Ours:
    """A training by our trainer, with what it reported; `react` is called with the model and each event."""

    def __init__(
        self,
        base: Path,
        rows: Sequence[Sample],
        valid: Sequence[Sample] | None = None,
        react: Callable[[nn.Module, TrainingEvent], None] = lambda model, event: None,
        around: Surroundings = Surroundings(),  # noqa: B008  (frozen)
        stop_after: int | None = None,
        resume: bool = False,
        **settings: Any,
    ) -> None:
        given = {"rank": 4, "alpha": 8, "epochs": 1, "samples": 0, "batch_tokens": 1000}
        self.recipe = Recipe.model_validate({**given, **settings})
        self.model, _ = load(str(base))
        lora.attach(self.model, self.recipe)
        self.events: list[TrainingEvent] = []

        def report(event: TrainingEvent) -> None:
            self.events.append(event)
            react(self.model, event)

        def stop() -> bool:
            return stop_after is not None and self.steps[-1].step >= stop_after

        sets = ours(rows), ours(valid or rows)
        self.trained = trainer.train(self.model, self.recipe, *sets, report, stop, around, resume=resume)

    def of[Event](self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def steps(self) -> list[Stepped]:
        return self.of(Stepped)

    @property
    def validations(self) -> list[Validated]:
        return self.of(Validated)


def adapted(base: Path, layers: int = -1, bare: bool = False) -> nn.Module:
    """The tiny model with mlx-lm's own LoRA on it, as mlx_lm.lora puts it there."""
    model, _ = load(str(base))
    if not bare:
        mx.random.seed(SEED)
        model.freeze()
        linear_to_lora_layers(model, layers, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    return model


def stock_train(
    model: nn.Module,
    rows: Sequence[Sample],
    folder: Path,
    valid: Sequence[Sample] | None = None,
    optimizer: optim.Optimizer | None = None,
    callback: TrainingCallback | None = None,
    loss: Callable[..., Any] = stock.default_loss,
    **settings: Any,
) -> dict[str, mx.array]:
    """mlx_lm.tuner.trainer.train as it is; returns what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"batch_size": 1, "iters": 2, "steps_per_report": 1, "steps_per_eval": 1, "val_batches": -1, **settings}
    args = stock.TrainingArgs(**given, adapter_file=folder / "adapters.safetensors")
    np.random.seed(SEED)
    stock.train(model, optimizer or optim.Adam(1e-3), rows, valid, args, loss=loss, training_callback=callback)
    return dict(mx.load(str(folder / "adapters.safetensors")))


def honest_loss(model: nn.Module, batch: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
    """mlx-lm's loss without its padding token, so that another trap can be seen alone."""
    steps = mx.arange(1, batch.shape[1])
    mask = mx.logical_and(steps >= lengths[:, 0:1], steps < lengths[:, 1:])
    tokens = mask.sum()
    return (nn.losses.cross_entropy(model(batch[:, :-1]), batch[:, 1:]) * mask).sum() / tokens, tokens


def same(first: dict[str, mx.array], second: dict[str, mx.array]) -> bool:
    return first.keys() == second.keys() and all(mx.array_equal(first[name], second[name]) for name in first)


def stock_lora_run(folder: Path, base: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, mx.array]:
    """What `mlx_lm.lora` does after its command line and its files are read; returns what it wrote."""
    model, tokenizer = load(str(base))
    given = {"batch_size": 1, "iters": 2, "num_layers": -1, "adapter_path": str(folder), "learning_rate": 1e-2}
    args = SimpleNamespace(**{**stock_lora.CONFIG_DEFAULTS, **given, **settings})
    np.random.seed(args.seed)
    dataset = ChatDataset(rows, tokenizer, mask_prompt=True)
    stock_lora.train_model(args, model, dataset, [])
    return dict(mx.load(str(folder / "adapters.safetensors")))


# Which tokens


def test_a_padding_token_of_every_row_is_supervised() -> None:
    rows = samples(4, 4, 4, 4)
    batch, lengths = next(stock.iterate_batches(rows, 4, 2048))

    def knows_every_real_token(inputs: mx.array) -> mx.array:
        names = mx.arange(600)
        return mx.where((batch[:, 1:, None] == names) & (names > 0), 50.0, 0.0)

    loss, tokens = stock.default_loss(knows_every_real_token, batch, lengths)
    assert (tokens.item(), sum(len(row) - offset for row, offset in rows)) == (20, 16)
    assert loss.item() == pytest.approx(math.log(600) / 5, rel=1e-3), "wrong in one token of five, and in no real one"

    assert ours(rows).supervised_tokens == 16
    batch = batch_of(ours(rows).rows, range(4))
    assert batch.targets[batch.weights > 0].tolist() == [token for row, offset in rows for token in row[offset:]]


def test_a_prompt_beyond_the_limit_makes_the_loss_nan(tiny_base: Path, tokenizer: Any) -> None:
    rows = [chat("a long question " * 40, "the answer"), chat("q", "a")]
    dataset = CacheDataset(ChatDataset(rows, tokenizer, mask_prompt=True))
    assert dataset[0][1] > 64
    batch, lengths = next(stock.iterate_batches([dataset[0]], 1, 64))
    loss, tokens = stock.default_loss(adapted(tiny_base, bare=True), batch, lengths)
    assert math.isnan(loss.item())
    assert tokens.item() == 0

    examples = [Example.model_validate(row) for row in rows]
    with pytest.raises(AfsError, match="rows are longer than max_seq_tokens = 64"):
        tokenise(examples, tokenizer, Recipe(max_seq_tokens=64), "rows")
    kept = tokenise(examples, tokenizer, Recipe(max_seq_tokens=64, over_long="truncate"), "rows")
    assert (kept.truncated, len(kept.rows[0].tokens)) == (1, 64)
    assert kept.rows[0].supervised_tokens == row_of(examples[0], tokenizer).supervised_tokens
    cut = [(row.tokens.tolist(), int(np.argmax(row.supervised))) for row in kept.rows]
    assert math.isfinite(Ours(tiny_base, cut).steps[0].loss)


def test_mask_prompt_trains_the_last_answer_alone(tokenizer: Any) -> None:
    row = chat("q", "the first answer", "q", "the second answer")
    tokens, offset = ChatDataset([row], tokenizer, mask_prompt=True).process(row)
    steps = np.arange(1, len(tokens))
    supervised = tokenizer.decode([tokens[i] for i in steps[(steps >= offset) & (steps <= len(tokens))]])
    assert "second answer" in supervised
    assert "first answer" not in supervised

    found = row_of(Example.model_validate(row), tokenizer)
    learnt = tokenizer.decode(found.tokens[found.supervised].tolist())
    assert learnt == "the first answer<|im_end|>the second answer<|im_end|>"


def test_a_conversation_without_an_answer_is_trained_on(tokenizer: Any) -> None:
    row = chat("a question that nobody answers")
    tokens, offset = ChatDataset([row], tokenizer, mask_prompt=False).process(row)
    assert len(tokens) - offset > 5
    row = chat("q", "")
    assert ChatDataset([row], tokenizer, mask_prompt=True).process(row)

    for bad in (chat("a question that nobody answers"), chat("q", "")):
        with pytest.raises(ValueError, match=r"the last message must be|an assistant message is empty"):
            Example.model_validate(bad)


# Waste


def padding_of(batches: Sequence[Sequence[int]]) -> float:
    """Share of padding where each batch is as wide as its longest row."""
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


def test_sorting_by_length_sorts_nothing(tokenizer: Any) -> None:
    dataset = CacheDataset(ChatDataset([chat("q", " a" * n) for n in lognormal(400)], tokenizer, mask_prompt=True))
    real = [len(dataset[i][0]) for i in range(400)]
    assert {dataset.itemlen(i) for i in range(400)} == {1}, "the number of keys in the row"
    shares = {}
    for size in (4, 8):
        batches = [lengths[:, 1].tolist() for _, lengths in stock.iterate_batches(dataset, size, 4096)]
        assert sum(map(len, batches)) == 400
        shares[size] = padding_of(batches)
    assert shares[4] > 0.45
    assert shares[8] > 0.55
    ordered = sorted(real)
    assert padding_of([ordered[i : i + 8] for i in range(0, 400, 8)]) < 0.15, "what sorting would have given"

    rows = ours([(list(range(1, length + 1)), 1) for length in real]).rows
    groups = epoch_batches(rows, 8 * sum(real) // len(real), seed=0, epoch=1)
    assert sorted(i for group in groups for i in group) == list(range(400))
    assert padding_of([[real[i] for i in group] for group in groups]) < 0.2


class Poison(TrainingCallback):
    """Spoils a weight once so many steps are done, mends it one step later if told how, and keeps the losses."""

    def __init__(self, spoil: Callable[[], None], after: int, then: Callable[[], None] = lambda: None) -> None:
        self.spoil, self.after, self.then = spoil, after, then
        self.losses: list[float] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.losses.append(train_info["train_loss"])
        if len(self.losses) == self.after:
            self.spoil()
        elif len(self.losses) == self.after + 1:
            self.then()


def test_frozen_blocks_are_computed_anew_in_every_step(tiny_base: Path, tmp_path: Path) -> None:
    """A frozen weight that is spoilt after the first epoch is seen by whoever still computes with it."""
    rows = samples(4, 9)
    model = adapted(tiny_base, layers=2)
    weight = model.layers[0].mlp.up_proj

    def spoil() -> None:
        weight.weight = weight.weight * math.nan

    poison = Poison(spoil, after=2)
    stock_train(model, rows, tmp_path, callback=poison, iters=4)
    assert np.isfinite(poison.losses).tolist() == [True, True, False, False]

    def spoil_after_two(model: nn.Module, event: TrainingEvent) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            weight = model.layers[0].mlp.up_proj
            weight.weight = weight.weight * math.nan

    found = Ours(tiny_base, rows, react=spoil_after_two, layers=2, epochs=2, batch_tokens=1)
    assert not np.isfinite(np.array(found.model(mx.array([[5, 6]])))).any()
    assert np.isfinite([step.loss for step in found.steps]).tolist() == [True] * 4
    assert found.of(RolledBack) == []


VOCABULARY = 50_000


def wide() -> nn.Module:
    """A tiny model with a large vocabulary."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "rms_norm_eps": 1e-6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    mx.random.seed(SEED)
    model = llama.Model(llama.ModelArgs("llama", **sizes, **heads, tie_word_embeddings=True))
    mx.eval(model.parameters())
    return model


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that arrays took beyond what was there before."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(work())
    return int(mx.get_peak_memory() - before)


def test_logits_of_a_large_vocabulary_exist_for_every_position() -> None:
    """400 positions, of which 40 are learnt: bytes of arrays, which are the same each time."""
    rows = samples(40, prompt=360)
    model = wide()
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    batch, lengths = next(stock.iterate_batches(rows, 1, 2048))
    stock_bytes = peak_bytes(lambda: nn.value_and_grad(model, stock.default_loss)(model, batch, lengths))
    logits_bytes = (batch.shape[1] - 1) * VOCABULARY * 4
    assert stock_bytes > 2 * logits_bytes

    model, recipe, sample = wide(), Recipe(rank=4, alpha=8, epochs=1, samples=0), ours(rows)
    lora.attach(model, recipe)
    mx.clear_cache()
    before, peaks = mx.get_active_memory(), list[float]()

    def report(event: TrainingEvent) -> None:
        if isinstance(event, Stepped):
            peaks.append(event.peak_memory_gb * 1e9 - before)

    trainer.train(model, recipe, sample, sample, report, lambda: False)
    assert 0 < peaks[0] < stock_bytes / 8


def test_the_buffer_cache_is_cleared_in_every_step_whatever_the_flag_says(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[int] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(1))
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 1)
    stock_lora_run(tmp_path / "stock", tiny_base, [chat("q", "a")], iters=5, clear_cache_threshold=10**15)
    assert len(cleared) == 5

    cleared.clear()
    steps = Ours(tiny_base, samples(4, 5, 6), batch_tokens=1, epochs=3).steps
    assert len(steps) == 9
    assert len(cleared) < 3


# Steps


def test_accumulation_weighs_short_answers_as_much_as_long_ones(tiny_base: Path, tmp_path: Path) -> None:
    rows = samples(1, 30)

    def moved(**settings: Any) -> np.ndarray:
        settings |= {"optimizer": optim.SGD(1.0), "loss": honest_loss}
        written = stock_train(adapted(tiny_base), rows, tmp_path / "stock", **settings)
        return np.concatenate([np.array(a).ravel() for name, a in sorted(written.items()) if name.endswith("lora_b")])

    at_once = moved(batch_size=2, iters=1)
    one_by_one = moved(batch_size=1, iters=2, grad_accumulation_steps=2)
    assert np.linalg.norm(one_by_one - at_once) > 0.3 * np.linalg.norm(at_once)

    small = Ours(tiny_base, rows, batch_tokens=1, accumulation=2, optimizer="sgd", weight_decay=0)
    big = Ours(tiny_base, rows, batch_tokens=1000, optimizer="sgd", weight_decay=0)
    assert len(small.steps) == len(big.steps) == 1
    assert small.trained.best_step == big.trained.best_step == 1, "the step's weights are in the model"
    assert small.steps[0].loss == pytest.approx(big.steps[0].loss, rel=1e-5)
    assert small.steps[0].grad_norm == pytest.approx(big.steps[0].grad_norm, rel=1e-4)
    for name, array in lora.adapter_weights(big.model).items():
        assert mx.allclose(lora.adapter_weights(small.model)[name], array, rtol=1e-4, atol=1e-7), name


def test_the_last_window_of_an_accumulation_is_lost(tiny_base: Path, tmp_path: Path) -> None:
    rows = samples(5, 7, 9)

    def written(iters: int) -> dict[str, mx.array]:
        settings: dict[str, Any] = {"iters": iters, "grad_accumulation_steps": 2}
        return stock_train(adapted(tiny_base), rows, tmp_path / f"stock-{iters}", **settings)

    assert same(written(3), written(2)), "the third row was read, and nothing came of it"
    assert not same(written(4), written(2))

    done = Ours(tiny_base, rows, batch_tokens=1, accumulation=2)
    assert [step.grad_norm > 0 for step in done.steps] == [True, True]
    assert sum(step.supervised_tokens for step in done.steps) == 5 + 7 + 9


# Validation


def test_validation_is_a_random_part_that_shares_the_order_of_training(tiny_base: Path) -> None:
    model, rows = adapted(tiny_base, bare=True), samples(2, 30, 4, 25, 8, 17, 11, 3, 22, 9)
    seen: list[int] = []

    def counted(model: nn.Module, batch: mx.array, lengths: mx.array) -> Any:
        loss, tokens = honest_loss(model, batch, lengths)
        seen.append(int(tokens.item()))
        return loss, tokens

    np.random.seed(SEED)
    untouched = np.random.permutation(100).tolist()
    np.random.seed(SEED)
    losses = [stock.evaluate(model, rows, 2, 1, loss=counted) for _ in range(6)]
    assert len(set(losses)) > 1, "the same model is worth something else each time"
    assert np.random.permutation(100).tolist() != untouched, "the training's next order hangs on how often it was asked"

    seen.clear()
    stock.evaluate(model, rows, 4, -1, loss=counted)
    assert len(seen) == 2, "two batches of four; the two longest rows are left out"
    assert sum(seen) == sum(sorted(len(row) - offset for row, offset in rows)[:8])

    seldom = Ours(tiny_base, rows, valid=rows, batch_tokens=60, dropout=0.2, validations_per_epoch=1)
    often = Ours(tiny_base, rows, valid=rows, batch_tokens=60, dropout=0.2, validations_per_epoch=4)
    assert len(often.validations) > len(seldom.validations)
    assert [step.loss for step in often.steps] == [step.loss for step in seldom.steps]
    assert {event.supervised_tokens for event in often.validations} == {ours(rows).supervised_tokens}
    assert often.validations[0].loss == seldom.validations[0].loss
    whole = [honest_loss(model, *batch) for batch in stock.iterate_batches(rows, 1, 2048)]
    mean = sum(loss.item() * tokens.item() for loss, tokens in whole) / ours(rows).supervised_tokens
    assert often.validations[0].loss == pytest.approx(mean, rel=1e-5)


# Coming back, and going wrong


def test_resuming_brings_back_nothing_but_weights(tiny_base: Path, tmp_path: Path) -> None:
    """One row, so that the order of data, which starts again too, plays no part."""
    rows = [chat("a question", "its answer")]

    def run(name: str, iters: int, **settings: Any) -> dict[str, mx.array]:
        return stock_lora_run(tmp_path / name, tiny_base, rows, iters=iters, **settings)

    straight = run("straight", 4)
    assert same(run("again", 4), straight)
    run("half", 2)
    resumed = run("resumed", 2, resume_adapter_file=str(tmp_path / "half" / "adapters.safetensors"))
    assert not same(resumed, straight)

    more, settings = samples(5, 12, 3, 8), {"batch_tokens": 20, "epochs": 3, "dropout": 0.2, "seed": SEED}
    whole = Ours(tiny_base, more, **settings)
    around = Surroundings(checkpoints=Checkpoints(tmp_path / "checkpoints", {"base": "tiny"}, keep=2))
    begun = Ours(tiny_base, more, around=around, stop_after=4, **settings)
    assert begun.trained.interrupted
    ended = Ours(tiny_base, more, around=around, resume=True, **settings)
    assert [step.step for step in ended.steps] == list(range(5, whole.trained.total_steps + 1))
    assert [step.loss for step in begun.steps + ended.steps] == [step.loss for step in whole.steps]
    assert same(ended.trained.weights, whole.trained.weights)
    assert not same(begun.trained.weights, whole.trained.weights)


def test_resuming_takes_a_file_of_another_kind_and_leaves_it_all_out(tiny_base: Path, tmp_path: Path) -> None:
    rows = [chat("a question", "its answer")]
    peft = tmp_path / "peft"
    peft.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    mx.save_safetensors(str(peft / "adapter_model.safetensors"), {name: mx.ones((8, 64))})
    fresh = stock_lora_run(tmp_path / "fresh", tiny_base, rows)
    file = str(peft / "adapter_model.safetensors")
    assert same(stock_lora_run(tmp_path / "resumed", tiny_base, rows, resume_adapter_file=file), fresh)

    with pytest.raises(AfsError, match="this is a PEFT adapter"):
        check_adapter_folder(peft, tiny_base)
    folder, row = tmp_path / "checkpoints", samples(4)
    Ours(tiny_base, row, around=Surroundings(checkpoints=Checkpoints(folder, {"base": "one"}, keep=1)))
    other = Surroundings(checkpoints=Checkpoints(folder, {"base": "two"}, keep=1))
    with pytest.raises(AfsError, match="the checkpoint was made with another base"):
        Ours(tiny_base, row, around=other, resume=True)


class Hiccup:
    """One step computes with a broken weight; after it the weight is whole again."""

    def __init__(self, model: nn.Module) -> None:
        self.norm = model.model.norm
        self.whole = self.norm.weight

    def begin(self) -> None:
        self.norm.weight = self.whole * math.nan

    def end(self) -> None:
        self.norm.weight = self.whole


def test_a_loss_that_is_no_number_is_trained_on_and_written(tiny_base: Path, tmp_path: Path) -> None:
    rows, model = samples(4, 5, 6), adapted(tiny_base)
    hiccup = Hiccup(model)
    poison = Poison(hiccup.begin, after=1, then=hiccup.end)
    written = stock_train(model, rows, tmp_path / "stock", callback=poison, iters=4)
    assert np.isnan(poison.losses).tolist() == [False, True, True, True]
    assert all(mx.isnan(array).any().item() for array in written.values()), "the good weights are gone"

    started: list[Hiccup] = []

    def react(model: nn.Module, event: TrainingEvent) -> None:
        if isinstance(event, Stepped) and event.step == 1 and not started:
            started.append(Hiccup(model))
            started[0].begin()
        elif isinstance(event, RolledBack):
            started[0].end()

    found = Ours(tiny_base, rows, react=react, batch_tokens=1, epochs=2)
    (back,) = found.of(RolledBack)
    assert (back.failed_step, back.step < 2) == (2, True)
    assert "not finite" in back.reason
    assert np.isfinite([step.loss for step in found.steps]).all()
    assert all(mx.isfinite(array).all().item() for array in lora.adapter_weights(found.model).values())


class Validations(TrainingCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.losses.append(val_info["val_loss"])


def test_the_last_weights_are_kept_not_the_best_and_nothing_stops_early(tiny_base: Path, tmp_path: Path) -> None:
    learnt, valid = contradicting_rows(load(str(tiny_base))[1])
    seen = Validations()
    model = adapted(tiny_base)
    optimizer = optim.Adam(1e-2, bias_correction=True)
    stock_train(model, learnt, tmp_path / "stock", valid, optimizer, seen, iters=40, batch_size=4)
    assert len(seen.losses) == 40, "it went on to the end"
    best = min(seen.losses)
    assert 0 < seen.losses.index(best) < 30
    assert stock.evaluate(model, valid, 4, -1) > 1.1 * best

    settings = {"epochs": 40, "learning_rate": 1e-2, "schedule": "constant", "warmup_fraction": 0}
    found = Ours(tiny_base, learnt, valid, patience=4, **settings)
    losses = [event.loss for event in found.validations]
    (stopped,) = found.of(StoppedEarly)
    assert stopped.step == found.trained.steps == found.trained.best_step + 4 < 40
    assert found.trained.best_valid_loss == min(losses) < losses[-1]
    kept = stock.evaluate(found.model, valid, 4, -1, loss=honest_loss)
    assert kept == pytest.approx(min(losses), rel=1e-5), "the weights in the model are the best ones"


def contradicting_rows(tokenizer: Any) -> tuple[list[Sample], list[Sample]]:
    """Training wants `stz`, validation `inc` to the same questions: first the form is learnt, then the wrong answer."""

    def rows(answer: str) -> list[Sample]:
        chats = [chat(f"routine {n}: lda #$0{n} sta $1{n}", f"{answer} ${n}") for n in range(4)]
        dataset = ChatDataset(chats, tokenizer, mask_prompt=True)
        return [dataset.process(row) for row in chats]

    return rows("stz"), rows("inc")


def test_what_was_trained_on_is_not_recorded(tiny_base: Path, tmp_path: Path) -> None:
    """No hash of base or data, no version of anything, and nothing of how it went."""
    stock_lora_run(tmp_path / "stock", tiny_base, [chat("q", "a")])
    text = (tmp_path / "stock" / "adapter_config.json").read_text()
    assert not [key for key in json.loads(text) if "sha" in key or "hash" in key or "version" in key]
    assert sorted(path.name for path in (tmp_path / "stock").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]

    workspace = Workspace.find()
    rows = [Example.model_validate(chat(f"question {n}", f"answer {n}")) for n in range(4)]
    data = {"inputs": [{"file": "rows.jsonl", "sha256": "f" * 64, "rows": 4}]}
    config = TrainConfig(
        expert="din",
        version="v2",
        system="You are Din.",
        recipe=Recipe(rank=2, alpha=4, layers=1, epochs=1),
        base="tiny-qwen2",
        own_base="tiny-qwen2",
        bases=Catalog.load(workspace).bases,
        train=rows[:3],
        valid=rows[3:],
        data_record=data,
        workspace=workspace,
    )
    folder = train(config, lambda event: None).path
    record = json.loads((folder / "run.json").read_text())
    assert len(record["base"]["weights_sha256"]) == 64
    assert record["data"] == data
    assert record["recipe"] == config.recipe.model_dump(mode="json")
    assert record["packages"]["mlx"] == mx.__version__
    assert record["metrics"]["best_valid_loss"] > 0


# Fusing


def test_fusing_into_four_bits_loses_most_of_a_small_update(tiny_base: Path, tmp_path: Path) -> None:
    """The same grid, so that what is below half a step is rounded away."""
    four = tmp_path / "four"
    shutil.copytree(tiny_base, four)
    packed, config = quantize_model(*load_model(tiny_base), group_size=64, bits=4)
    save_model(four, packed)
    save_config(config, four / "config.json")
    run, recipe = tmp_path / "run", Recipe(rank=4, alpha=4, targets=("up_proj", "q_proj"))
    model, _ = load(str(four))
    keys = lora.attach(model, recipe)
    rng = np.random.default_rng(5)
    updates: dict[str, mx.array] = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_a"):
            continue
        module.lora_b = mx.array(rng.normal(size=module.lora_b.shape).astype(np.float32))
        delta = (module.lora_a @ module.lora_b).T
        module.lora_b *= 0.02 * dequantised(module.linear).std() / delta.std()
        updates[name] = (module.lora_a @ module.lora_b).T
    assert len(updates) == 8
    kept = {}
    for name, module in model.named_modules():
        if name in updates:
            kept[name] = survival(dequantised(module.fuse()) - dequantised(module.linear), updates[name])
    assert np.median(list(kept.values())) < 0.4

    lora.write(run, model, recipe, keys, {"id": "tiny-qwen2", "weights_sha256": "0" * 64}, four, "din")
    (tmp_path / "fused").mkdir()
    done = fuse(four, run, tmp_path / "fused", StorageOptions(quantize="4", changed="same"))
    assert set(done.changed_bits.values()) == {4}
    fused, _ = load(str(tmp_path / "fused"))
    before = dict(load(str(four))[0].named_modules())
    found = [
        survival(dequantised(module) - dequantised(before[name]), updates[name])
        for name, module in fused.named_modules()
        if name in updates
    ]
    assert len(found) == 8
    assert np.median(found) > 0.85


def dequantised(linear: nn.Module) -> mx.array:
    """A linear's weight as numbers (out, in)."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(linear.weight, linear.scales, linear.biases, linear.group_size, linear.bits)


def survival(found: mx.array, wanted: mx.array) -> float:
    """How much of an update is in what a weight really differs by."""
    return float(((found * wanted).sum() / (wanted * wanted).sum()).item())
