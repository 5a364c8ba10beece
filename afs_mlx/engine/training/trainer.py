"""The training loop. Knows rows, a model with adapters and a recipe; reports by events, writes checkpoints alone."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from afs_mlx.core.errors import AfsError
from afs_mlx.core.ranks import beat
from afs_mlx.engine.training import optimizers
from afs_mlx.engine.training.batches import group_by_length
from afs_mlx.engine.training.checkpoints import Checkpoints, Snapshot
from afs_mlx.engine.training.compute.losses import Losses, Parameters
from afs_mlx.engine.training.distributed import World, share
from afs_mlx.engine.training.dropout import step_key
from afs_mlx.engine.training.events import (
    Planned,
    Resumed,
    RolledBack,
    Sampled,
    Saved,
    Stepped,
    StoppedEarly,
    TrainingEvent,
    Validated,
    Warned,
)
from afs_mlx.engine.training.progress import Progress
from afs_mlx.engine.training.rows import TokenisedSet
from afs_mlx.engine.training.schedule import learning_rate
from afs_mlx.engine.training.windows import Window, padding_share, training_windows
from afs_mlx.schema.recipe import Recipe

MOST_ROLLBACKS = 3
AFTER_ROLLBACK = 0.5  # the rate from then on, as a share


@dataclass(frozen=True)
class Surroundings:
    """What a training may use beside its model; each can be missing.

    `sample` answers a few questions; `watch` gives new warnings about the machine; `clock` counts seconds awake;
    `frozen_folder` may hold what frozen blocks gave, for the base whose weights hash to `base_sha256`; `identity` is
    what all ranks must agree on, by name.
    """

    checkpoints: Checkpoints | None = None
    sample: Callable[[int], list[Sampled]] | None = None
    watch: Callable[[], Sequence[str]] | None = None
    clock: Callable[[], float] = time.monotonic
    frozen_folder: Path | None = None
    base_sha256: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)
    world: World = World.alone()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class Trained:
    """What training left: the weights with the lowest validation loss, and how it went."""

    weights: dict[str, mx.array]
    steps: int
    total_steps: int
    base_valid_loss: float
    best_valid_loss: float
    best_step: int
    last_train_loss: float | None
    supervised_tokens_seen: int
    elapsed_s: float
    peak_memory_gb: float
    interrupted: bool
    stopped_early: bool
    rollbacks: int


def train(
    model: nn.Module,
    recipe: Recipe,
    train_set: TokenisedSet,
    valid_set: TokenisedSet,
    on_event: Callable[[TrainingEvent], None],
    should_stop: Callable[[], bool],
    around: Surroundings = Surroundings(),
    *,
    resume: bool = False,
) -> Trained:
    """Train the adapters that `lora.attach` put into `model`; on return the best weights are in it.

    `should_stop` is asked after every step; training then ends with what has been learnt, and a checkpoint. With
    `resume` it goes on, bit for bit, from the newest whole checkpoint. The validation set is always whole and in the
    same order. Raises AfsError when the loss stays not finite or spiking after three rollbacks.
    """
    loop = Loop(model, recipe, train_set, valid_set, on_event, should_stop, around)
    with loop.losses.running():
        return loop.run(resume=resume)


class Loop:
    """The state of one training: parameters, optimizer, best weights, progress."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train_set: TokenisedSet,
        valid_set: TokenisedSet,
        on_event: Callable[[TrainingEvent], None],
        should_stop: Callable[[], bool],
        around: Surroundings,
    ) -> None:
        self.model, self.recipe, self.around = model, recipe, around
        self.train_set, self.valid_set = train_set, valid_set
        self.on_event, self.should_stop, self.world = on_event, should_stop, around.world
        rows = [*train_set.rows, *valid_set.rows]
        mx.reset_peak_memory()
        self.losses = Losses(model, recipe, rows, around.frozen_folder, around.base_sha256)
        self.lengths = [len(row.tokens) for row in rows]
        self.windows = training_windows(train_set.rows, recipe)
        valid = range(len(train_set.rows), len(rows))
        self.valid_groups = group_by_length(rows, valid, recipe.batch_tokens)
        self.parameters: Parameters = model.trainable_parameters()
        self.optimizer = optimizers.make(recipe)
        self.optimizer.init(self.parameters)
        self.progress = Progress()
        self.best = _flat(self.parameters)
        self.good = self._snapshot()
        self.began = around.clock()

    def run(self, *, resume: bool) -> Trained:
        self.on_event(_planned(self))
        self._agree()
        stopped = False
        found = self._resumed() if resume else False
        early = found and self._is_late()
        self.losses.prepare(self.on_event)
        if not found:
            self._validate()
            self.progress.base_loss = self.progress.best_loss
            self._save()
        while self.progress.step < len(self.windows) and not (stopped or early):
            window = self.windows[self.progress.step]
            if not self._step(window):
                continue
            stopped = self.world.any(self.should_stop())
            if window.validates:
                if not self._validate():
                    continue
                early = self._is_late()
            if stopped or self._is_scheduled():
                self._save()
            if stopped and not window.validates:
                # After the checkpoint: a resumed run must not know of it.
                self._validate()
        self.model.update(tree_unflatten(list(self.best.items())))
        mx.eval(self.model.trainable_parameters())
        return self._trained(stopped and not early and self.progress.step < len(self.windows), early)

    def _step(self, window: Window) -> bool:
        """One optimizer step, each token weighing as its row says; False when it was undone."""
        began = self.around.clock()
        progress = self.progress
        number = progress.step + 1
        if number in progress.skipped:
            progress.step = number
            return True
        total, gradients, weight, tokens = self._gradients(window, number)
        rate = learning_rate(self.recipe, number, len(self.windows)) * progress.rate_factor
        gradients = tree_map(lambda g: g / weight, gradients)
        gradients, norm = optim.clip_grad_norm(gradients, self.recipe.clip_norm)
        loss = total / weight
        wrong = progress.spike(loss, self.recipe.spike_factor)
        if not wrong and not math.isfinite(norm.item()):
            wrong = "the gradient is not finite"
        if wrong:
            self._roll_back(number, wrong)
            return False
        self.optimizer.learning_rate = rate
        self.parameters = self.optimizer.apply_gradients(gradients, self.parameters)
        mx.eval(self.parameters, self.optimizer.state)
        progress.step = number
        progress.training_s += self.around.clock() - began
        progress.tokens_seen += tokens
        progress.note_loss(loss)
        self._report(window, loss, rate, norm.item(), tokens)
        return True

    def _gradients(self, window: Window, number: int) -> tuple[float, Parameters, float, int]:
        """Summed loss, summed gradients, weight and tokens of a step, over all ranks."""
        total, weight, tokens = 0.0, 0.0, 0
        gradients: Parameters | None = None
        for part, group in enumerate(window.groups):
            mine = self._mine(group)
            if not mine:
                continue
            batch = self.losses.batch(mine)
            key = step_key(self.recipe.seed, number, part * self.world.size + self.world.rank)
            loss, found = self.losses.loss_and_gradients(self.parameters, batch, key)
            gradients = found if gradients is None else tree_map(mx.add, gradients, found)
            mx.eval(loss, gradients)
            total += _number(loss)
            weight += batch.weight
            tokens += batch.supervised_tokens
            beat()
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.parameters)
        if self.world.size > 1:
            gradients = self.world.sum(gradients)
            total, weight, counted = self.world.sum_numbers([total, weight, float(tokens)])
            tokens = round(counted)
        return total, gradients, weight, tokens

    def _validate(self) -> bool:
        """The mean loss over every supervised token of the validation set; keeps the weights when it is the lowest.

        False when it was not finite and the training was rolled back.
        """
        began = self.around.clock()
        total, weight = 0.0, 0.0
        for group in self.valid_groups:
            if mine := self._mine(group):
                batch = self.losses.batch(mine)
                total += _number(self.losses.loss(self.parameters, batch))
                weight += batch.weight
                beat()
        total, weight = self.world.sum_numbers([total, weight])
        progress = self.progress
        if not math.isfinite(total):
            wrong = "the validation loss is not finite"
            if progress.step == 0:
                raise AfsError(wrong, "step 0", "lower learning_rate, or check the base with `afs-mlx doctor`")
            self._roll_back(progress.step, wrong)
            return False
        loss = total / weight
        best = loss < progress.best_loss
        progress.worse_in_a_row = 0 if best else progress.worse_in_a_row + 1
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            self.best = _flat(self.parameters)
        self.on_event(Validated(progress.step, loss, self.valid_set.supervised_tokens, best, self._elapsed_s()))
        if self.around.sample and self.world.first:
            self.model.update(self.parameters)
            for sample in self.around.sample(progress.step):
                self.on_event(sample)
        progress.validations += 1
        progress.validation_s += self.around.clock() - began
        return True

    def _is_late(self) -> bool:
        late = 0 < self.recipe.patience <= self.progress.worse_in_a_row
        if late:
            self.on_event(StoppedEarly(self.progress.step, self.progress.worse_in_a_row))
        return late

    def _roll_back(self, failed_step: int, reason: str) -> None:
        """Back to the last good state, at half the rate, without the rows that went wrong."""
        before = self.progress
        if before.rollbacks >= MOST_ROLLBACKS:
            raise AfsError(
                f"{reason} at step {failed_step}, also after {MOST_ROLLBACKS} rollbacks",
                f"learning rate × {before.rate_factor:g}",
                "lower learning_rate or clip_norm, and look at the rows; checkpoints before this are intact",
            )
        self._restore(self.good)
        self.progress.elapsed_s = self._elapsed_s()
        self.began = self.around.clock()
        self.progress.rollbacks = before.rollbacks + 1
        self.progress.rate_factor = before.rate_factor * AFTER_ROLLBACK
        self.progress.skipped = sorted({*before.skipped, failed_step})
        self.on_event(RolledBack(failed_step, self.progress.step, reason, self.progress.rate_factor))

    def _save(self) -> None:
        """A state to come back to; on disk where there are checkpoints."""
        self.progress.peak_memory_gb = self._peak_memory_gb()
        self.progress.elapsed_s = self._elapsed_s()
        self.began = self.around.clock()
        self.good = self._snapshot()
        if self.around.checkpoints and self.world.first:
            name = self.around.checkpoints.save(self.good, self.recipe.checkpoint_steps)
            self.on_event(Saved(self.progress.step, name))
        self.world.barrier()

    def _snapshot(self) -> Snapshot:
        """References alone: mlx's arrays do not change."""
        state = optimizers.flat(self.optimizer.state)
        return Snapshot(self.progress.copy(), _flat(self.parameters), dict(self.best), state)

    def _restore(self, snapshot: Snapshot) -> None:
        self.progress = snapshot.progress.copy()
        # In the model's order: the norm of all gradients is a sum, whose last bits depend on it.
        self.parameters = tree_unflatten([(name, snapshot.weights[name]) for name in _flat(self.parameters)])
        self.best = dict(snapshot.best)
        optimizers.restore(self.optimizer, snapshot.optimizer)

    def _resumed(self) -> bool:
        """Take up the newest checkpoint; rank 0 reads it and tells the others."""
        checkpoints = self.around.checkpoints
        found = checkpoints.latest() if checkpoints and self.world.first else None
        if not self.world.any(found is not None):
            return False
        snapshot, damaged = found or (self.good, [])
        for line in damaged:
            self.on_event(Warned(f"a damaged checkpoint was passed over: {line}"))
        if self.world.size > 1:
            snapshot = _told(self.world, snapshot)
        self._restore(snapshot)
        self.good = snapshot if self._is_scheduled() else self._before(snapshot)
        self.began = self.around.clock()
        now = self.progress
        self.on_event(Resumed(now.step, len(self.windows), now.elapsed_s, now.best_loss, now.best_step))
        return True

    def _is_scheduled(self) -> bool:
        """Whether a run that nobody stopped has a checkpoint here."""
        return self.progress.step % self.recipe.checkpoint_steps == 0

    def _before(self, snapshot: Snapshot) -> Snapshot:
        """The checkpoint that a run which was not stopped would roll back to; the one at hand where it is gone."""
        checkpoints, every = self.around.checkpoints, self.recipe.checkpoint_steps
        step = snapshot.progress.step // every * every
        found = checkpoints.at(step) if checkpoints and self.world.first else None
        if not self.world.any(found is not None):
            return snapshot
        return _told(self.world, found or snapshot) if self.world.size > 1 else found or snapshot

    def _agree(self) -> None:
        if self.world.size > 1:
            self.world.agree(**{"recipe": self.recipe.model_dump_json(), **self.around.identity})

    def _mine(self, group: list[int]) -> list[int]:
        """This rank's rows of a micro-batch."""
        if self.world.size == 1:
            return group
        return [group[i] for i in share([self.lengths[row] for row in group], self.world.rank, self.world.size)]

    def _report(self, window: Window, loss: float, rate: float, norm: float, tokens: int) -> None:
        progress = self.progress
        left = sum(window.validates for window in self.windows[progress.step :])
        self.on_event(
            Stepped(
                step=progress.step,
                total_steps=len(self.windows),
                epoch=window.epoch,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                supervised_tokens=tokens,
                tokens_per_s=progress.tokens_seen / max(progress.training_s, 1e-9),
                peak_memory_gb=self._peak_memory_gb(),
                elapsed_s=self._elapsed_s(),
                eta_s=progress.eta_s(len(self.windows), left),
            )
        )
        for warning in self.around.watch() if self.around.watch else ():
            self.on_event(Warned(warning))

    def _elapsed_s(self) -> float:
        return self.progress.elapsed_s + self.around.clock() - self.began

    def _peak_memory_gb(self) -> float:
        return max(self.progress.peak_memory_gb, mx.get_peak_memory() / 1e9)

    def _trained(self, interrupted: bool, early: bool) -> Trained:
        progress = self.progress
        return Trained(
            weights=self.best,
            steps=progress.step,
            total_steps=len(self.windows),
            base_valid_loss=progress.base_loss,
            best_valid_loss=progress.best_loss,
            best_step=progress.best_step,
            last_train_loss=progress.last_loss,
            supervised_tokens_seen=progress.tokens_seen,
            elapsed_s=self._elapsed_s(),
            peak_memory_gb=self._peak_memory_gb(),
            interrupted=interrupted,
            stopped_early=early,
            rollbacks=progress.rollbacks,
        )


def _planned(loop: Loop) -> Planned:
    train_set, valid_set, ways = loop.train_set, loop.valid_set, loop.losses.ways
    return Planned(
        total_steps=len(loop.windows),
        train_rows=len(train_set.rows),
        valid_rows=len(valid_set.rows),
        dropped_rows=train_set.dropped + valid_set.dropped,
        truncated_rows=train_set.truncated + valid_set.truncated,
        train_tokens=sum(len(row.tokens) for row in train_set.rows),
        supervised_tokens=train_set.supervised_tokens,
        shared_tokens=ways.shared,
        trainable_parameters=sum(array.size for array in _flat(loop.parameters).values()),
        padding_share=0.0 if ways.lean and not ways.compiled else padding_share(loop.windows, loop.lengths),
    )


def _told(world: World, snapshot: Snapshot) -> Snapshot:
    """Rank 0's snapshot on every rank."""
    text = snapshot.progress.as_json().encode()
    size = int(world.sum_number(float(len(text)) if world.first else 0.0))
    sent = mx.array(list(text.ljust(size, b" ")[:size]), dtype=mx.uint8)
    received = world.broadcast({"text": sent})["text"]
    parts = world.broadcast({"weights": snapshot.weights, "best": snapshot.best, "optimizer": snapshot.optimizer})
    return Snapshot(Progress.from_json(bytes(received.tolist()).decode()), **parts)


def _flat(parameters: Parameters) -> dict[str, mx.array]:
    pairs: Any = tree_flatten(parameters)
    return dict(pairs)


def _number(scalar: mx.array) -> float:
    """A scalar array as a float; waits for it."""
    value: Any = scalar.item()
    return float(value)
