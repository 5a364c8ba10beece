"""A few steps of a training, measured, to calibrate the forecast on. Writes nothing, leaves the model as it was."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step

from afs_mlx.engine.training import optimizers
from afs_mlx.engine.training.batches import group_by_length
from afs_mlx.engine.training.compute.losses import Losses, Parameters
from afs_mlx.engine.training.dropout import step_key
from afs_mlx.engine.training.lora import adapter_weights
from afs_mlx.engine.training.planning.calibration import PROCESS_BYTES, FrozenPass, Measured, Probe
from afs_mlx.engine.training.planning.costs import work
from afs_mlx.engine.training.planning.reading import RowShapes
from afs_mlx.engine.training.planning.room import process_bytes
from afs_mlx.engine.training.planning.sampling import probe_batches
from afs_mlx.engine.training.planning.shapes import BatchShape, Columns, ModelShape
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe

MOST_S = 40.0  # of probing batches
SHARE = 0.3  # of the time of the training's steps
SAMPLE_TOKENS = 8
GROWTH_BYTES = 60_000_000  # of Python while it trains: modules that are loaded late, batches, the allocator's tables
SAVED_BYTES_PER_S = 300e6  # writing and hashing a checkpoint
SAVE_S = 0.02  # its other files and the folder's renaming


@dataclass(frozen=True)
class Probing:
    """The next measurement: batch `number` of at most `total`, of so many tokens."""

    number: int
    total: int
    tokens: int


def probe(
    model: nn.Module,
    shape: ModelShape,
    recipe: Recipe,
    rows: RowShapes,
    limit_bytes: float,
    on_event: Callable[[Probing], None],
) -> Probe:
    """Measure batches of the training that `recipe` would be, the cheapest first, each twice.

    A batch whose counted memory is above `limit_bytes` is not run, and one that would take the probe beyond `SHARE` of
    the training's time is not either; the cheapest always is.
    """
    with _as_before(model):
        return _Prober(model, shape, recipe, rows, on_event).run(limit_bytes)


def resident_bytes(model: nn.Module, recipe: Recipe) -> tuple[int, float]:
    """What stays between steps, and how many copies of the adapter it holds.

    The adapter, the optimizer's state of it, both as the last good state, and the best weights. Makes no array.
    """
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    adapter = _adapter_bytes(model)
    optimizer = optimizers.make(recipe)
    optimizer.init(model.trainable_parameters())
    states = sum(array.nbytes for array in optimizers.flat(optimizer.state).values()) / adapter
    copies = 3 + 2 * states
    return round(sum(array.nbytes for array in arrays.values()) + (copies - 1) * adapter), copies


def process_beside_arrays() -> int:
    """What the process takes beside mlx's arrays, to be asked with the base loaded.

    Metal's buffers may or may not be among what the system tells, so there a usual size is taken.
    """
    if mx.default_device() != mx.cpu:
        return PROCESS_BYTES
    return max(0, process_bytes() - mx.get_active_memory() - mx.get_cache_memory()) + GROWTH_BYTES


@dataclass
class _Prober:
    model: nn.Module
    shape: ModelShape
    recipe: Recipe
    rows: RowShapes
    on_event: Callable[[Probing], None]
    steps: list[Measured] = field(default_factory=list)
    groups: list[BatchShape] = field(default_factory=list)
    frozen_s: float = 0.0
    update_s: float = 0.0
    spent_s: float = 0.0

    def run(self, limit_bytes: float) -> Probe:
        batches = [group for groups in {id(e): e for e in self.rows.epochs(self.recipe)}.values() for group in groups]
        shapes = [self.rows.batch(group, self.recipe) for group in batches]
        chosen = probe_batches(shapes, self.shape, self.recipe, limit_bytes)
        resident, copies = resident_bytes(self.model, self.recipe)
        beside = process_beside_arrays()
        for number, index in enumerate(chosen, start=1):
            if self.steps and self.spent_s + self._foreseen_s(shapes[index]) > self._allowed_s():
                break
            self.on_event(Probing(number, len(chosen), shapes[index].tokens))
            self._measure(batches[index])
        prompt_s, token_s = self._sample_s()
        return Probe(
            recipe=self.recipe,
            resident_bytes=resident,
            steps=tuple(self.steps),
            frozen=FrozenPass(tuple(self.groups), self.frozen_s) if self.groups else None,
            process_bytes=beside,
            copies=copies,
            prompt_s=prompt_s,
            sample_token_s=token_s,
            checkpoint_s=SAVE_S + _checkpoint_bytes(self.model, copies) / SAVED_BYTES_PER_S,
            update_s=self.update_s,
        )

    def _measure(self, numbers: Sequence[int]) -> None:
        """One batch, twice, with the frozen blocks below it and an update of the optimizer."""
        began = time.perf_counter()
        needed = [*numbers, *_telling(self.rows.rows, numbers, self.rows.shared(self.recipe))]
        # Of these rows alone, all kept in memory: as a step of the training finds them.
        kept = self.recipe.model_copy(update={"speed": self.recipe.speed.model_copy(update={"memory_gb": 1024.0})})
        losses = Losses(self.model, kept, [self.rows.rows[number] for number in needed], None, "")
        self._run_frozen(losses, needed)
        parameters = self.model.trainable_parameters()
        shape = self.rows.batch(numbers, self.recipe)
        batch = losses.batch(range(len(numbers)))
        with losses.running():
            self.steps.append(_lower([self._step(losses, parameters, batch, shape) for _ in range(2)]))
        self.steps.append(_lower([_forward(losses, parameters, batch, shape) for _ in range(2)]))
        self.spent_s += time.perf_counter() - began

    def _run_frozen(self, losses: Losses, numbers: Sequence[int]) -> None:
        if losses.frozen is None:
            return
        times = []
        for _ in range(2):
            began = time.perf_counter()
            losses.prepare(lambda _: None)
            times.append(time.perf_counter() - began)
        self.frozen_s += min(times)
        rows = [self.rows.rows[number] for number in numbers]
        groups = group_by_length(rows, range(len(rows)), self.recipe.batch_tokens)
        self.groups += [self.rows.batch([numbers[i] for i in group], self.recipe) for group in groups]

    def _step(self, losses: Losses, parameters: Parameters, batch: Any, shape: BatchShape) -> Measured:
        """A gradient as the loop takes it, and the update after it."""
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        waiting = tree_map(mx.zeros_like, parameters) if self.recipe.accumulation > 1 else None
        mx.eval(waiting)
        began = time.perf_counter()
        loss, gradients = losses.loss_and_gradients(parameters, batch, step_key(self.recipe.seed, 1, 0))
        if waiting is not None:
            gradients = tree_map(mx.add, waiting, gradients)
        mx.eval(loss, gradients)
        seconds = time.perf_counter() - began
        extra = mx.get_peak_memory() - before
        optimizer = optimizers.make(self.recipe)
        optimizer.init(parameters)
        mx.eval(optimizer.state)
        began = time.perf_counter()
        clipped, norm = optim.clip_grad_norm(gradients, self.recipe.clip_norm)
        mx.eval(optimizer.apply_gradients(clipped, parameters), optimizer.state, norm)
        self.update_s = time.perf_counter() - began
        return Measured(shape, seconds, extra)

    def _foreseen_s(self, shape: BatchShape) -> float:
        """Of probing a batch, by the time that the others took."""
        measured = [step.batch for step in self.steps if step.training]
        return self.spent_s * self._count([shape]) / self._count(measured)

    def _allowed_s(self) -> float:
        steps = [step for step in self.steps if step.training]
        speed = sum(step.seconds for step in steps) / self._count([step.batch for step in steps])
        return min(MOST_S, SHARE * speed * self._count(self.rows(self.recipe).every_train))

    def _count(self, batches: Sequence[BatchShape]) -> float:
        recipe = self.shape.applied(self.recipe)
        parts = work(Columns.of(batches, recipe), self.shape, recipe, training=True)
        return float(sum(column.sum() for column in parts.values()))

    def _sample_s(self) -> tuple[float, float]:
        """Seconds up to a sample answer's first token, and of each further one."""
        if not self.recipe.samples:
            return 0.0, 0.0
        self.model.eval()
        row = self.rows.first_valid
        prompt = mx.array(row.tokens[: int(np.argmax(row.supervised))])
        began, times = time.perf_counter(), []
        for _ in generate_step(prompt, self.model, max_tokens=SAMPLE_TOKENS):
            times.append(time.perf_counter() - began)
        token_s = (times[-1] - times[0]) / (len(times) - 1)
        return max(0.0, times[0] - token_s), token_s


def _forward(losses: Losses, parameters: Parameters, batch: Any, shape: BatchShape) -> Measured:
    """A pass without the gradient, as a validation takes it."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    mx.eval(losses.loss(parameters, batch))
    return Measured(shape, time.perf_counter() - began, mx.get_peak_memory() - before, training=False)


def _lower(measured: Sequence[Measured]) -> Measured:
    """The last one (the first makes buffers and compiles) with the lower time."""
    return replace(measured[-1], seconds=min(each.seconds for each in measured))


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards the adapters, their dropouts and the mode are what they were."""
    parameters, training = model.trainable_parameters(), model.training
    drops: list[tuple[Any, Any]] = [(m, m.dropout) for m in model.modules() if "lora_a" in m and "dropout" in m]
    try:
        yield
    finally:
        model.update(parameters)
        for module, dropout in drops:
            module.dropout = dropout
        model.train(training)
        mx.clear_cache()


def _telling(rows: Sequence[Row], numbers: Sequence[int], shared: int) -> list[int]:
    """Rows beside `numbers` that keep what all of them begin with from being longer than it is over all rows."""
    if not shared:
        return []
    found = []
    first = rows[numbers[0]].tokens
    for number, row in enumerate(rows):
        short = int(np.argmax(row.supervised)) - 1 <= shared or len(row.tokens) <= shared
        if short or (len(first) > shared and row.tokens[shared] != first[shared]):
            found = [number]
            break
    return [number for number in found if number not in numbers]


def _checkpoint_bytes(model: nn.Module, copies: float) -> float:
    """Weights, best weights and the optimizer's state."""
    return _adapter_bytes(model) * (copies + 1) / 2


def _adapter_bytes(model: nn.Module) -> int:
    return sum(array.nbytes for array in adapter_weights(model).values())
