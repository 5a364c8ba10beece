"""The training loop. Knows rows, a model with adapters and a recipe; reports by events, writes no file."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training.batches import Batch, batch_of, epoch_order, group_by_length
from afs_mlx.engine.training.events import Planned, Stepped, TrainingEvent, Validated
from afs_mlx.engine.training.frozen_prefix import FrozenPrefix
from afs_mlx.engine.training.lora import adapter_weights
from afs_mlx.engine.training.loss import summed_loss
from afs_mlx.engine.training.rows import TokenisedSet
from afs_mlx.engine.training.schedule import learning_rate
from afs_mlx.schema.recipe import Recipe

PREFIX_BYTES = 2_000_000_000  # what the frozen blocks' outputs may take; batches beyond it are recomputed


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


def train(
    model: nn.Module,
    recipe: Recipe,
    train_set: TokenisedSet,
    valid_set: TokenisedSet,
    on_event: Callable[[TrainingEvent], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Train the adapters that `lora.attach` put into `model`; on return the best weights are in it.

    `should_stop` is asked after every step; training then ends with what has been learnt. The validation set is
    always whole and in the same order. Raises AfsError when the loss is not finite.
    """
    groups = group_by_length(train_set.rows, recipe.batch_tokens)
    windows = math.ceil(len(groups) / recipe.accumulation)
    plan = _planned(model, recipe, train_set, valid_set, groups, windows * recipe.epochs)
    on_event(plan)
    with _checkpointed(model, recipe.seed) if recipe.grad_checkpoint else _unchanged():
        return _Loop(model, recipe, train_set, valid_set, groups, plan.total_steps, on_event, should_stop).run()


class _Loop:
    """The state of one training: model, optimizer, best weights, clocks."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train_set: TokenisedSet,
        valid_set: TokenisedSet,
        groups: list[list[int]],
        total_steps: int,
        on_event: Callable[[TrainingEvent], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.model, self.recipe, self.total_steps = model, recipe, total_steps
        self.train_set, self.groups = train_set, groups
        self.valid_batches = [
            batch_of([valid_set.rows[i] for i in group])
            for group in group_by_length(valid_set.rows, recipe.batch_tokens)
        ]
        self.on_event, self.should_stop = on_event, should_stop
        prefix = FrozenPrefix(model, recipe.layers, PREFIX_BYTES)
        self.prefix = prefix if prefix.depth > 0 else None
        self.optimizer = optim.AdamW(
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            # As in the paper and in PyTorch; without it mlx's early steps are several times the rate asked for.
            bias_correction=True,
        )
        self.loss_and_grad = nn.value_and_grad(model, summed_loss)
        self.best_weights: dict[str, mx.array] = {}
        self.best_loss, self.best_step = math.inf, 0
        self.started = time.monotonic()
        self.training_s = 0.0
        self.tokens_seen = 0

    def run(self) -> Trained:
        mx.reset_peak_memory()
        mx.random.seed(self.recipe.seed)
        base_loss = self.validate(0)
        step, loss, stopped = 0, None, False
        for epoch in range(1, self.recipe.epochs + 1):
            windows = list(_windows(epoch_order(self.groups, self.recipe.seed, epoch), self.recipe.accumulation))
            every = max(1, math.ceil(len(windows) / self.recipe.validations_per_epoch))
            for index, window in enumerate(windows, start=1):
                step += 1
                loss = self.step(step, epoch, window)
                stopped = self.should_stop()
                if index % every == 0 or index == len(windows) or stopped:
                    self.validate(step)
                if stopped:
                    break
            if stopped:
                break
        self.model.load_weights(list(self.best_weights.items()), strict=False)
        return Trained(
            weights=self.best_weights,
            steps=step,
            total_steps=self.total_steps,
            base_valid_loss=base_loss,
            best_valid_loss=self.best_loss,
            best_step=self.best_step,
            last_train_loss=loss,
            supervised_tokens_seen=self.tokens_seen,
            elapsed_s=time.monotonic() - self.started,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
            interrupted=stopped and step < self.total_steps,
        )

    def step(self, step: int, epoch: int, window: list[int]) -> float:
        """One optimizer step over a window of micro-batches, each token weighing the same."""
        began = time.monotonic()
        self.model.train()
        total, gradients, tokens = 0.0, None, 0
        for group in window:
            batch = batch_of([self.train_set.rows[i] for i in self.groups[group]])
            loss, grads = self.loss_and_grad(self.model, batch, self.prefix, self.prefix_output("train", group, batch))
            gradients = grads if gradients is None else tree_map(mx.add, gradients, grads)
            mx.eval(loss, gradients)
            total += _number(loss)
            tokens += batch.supervised_tokens
        gradients = tree_map(lambda g: g / tokens, gradients)
        gradients, norm = optim.clip_grad_norm(gradients, self.recipe.clip_norm)
        rate = learning_rate(self.recipe, step, self.total_steps)
        if not (math.isfinite(total) and math.isfinite(norm.item())):
            raise AfsError(
                f"the loss is not finite at step {step}",
                f"learning rate {rate:.2g}",
                "lower learning_rate or clip_norm, and check the base with `afs-mlx doctor`",
            )
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        self.training_s += time.monotonic() - began
        self.tokens_seen += tokens
        self.on_event(
            Stepped(
                step=step,
                total_steps=self.total_steps,
                epoch=epoch,
                loss=total / tokens,
                learning_rate=rate,
                grad_norm=norm.item(),
                supervised_tokens=tokens,
                tokens_per_s=self.tokens_seen / self.training_s,
                peak_memory_gb=mx.get_peak_memory() / 1e9,
                elapsed_s=time.monotonic() - self.started,
            )
        )
        return total / tokens

    def validate(self, step: int) -> float:
        """The mean loss over every supervised token of the validation set; keeps the weights when it is the lowest."""
        self.model.eval()
        total, tokens = 0.0, 0
        for number, batch in enumerate(self.valid_batches):
            start = self.prefix_output("valid", number, batch)
            total += _number(summed_loss(self.model, batch, self.prefix, start))
            tokens += batch.supervised_tokens
        if not math.isfinite(total):
            fix = "lower learning_rate, or check the base with `afs-mlx doctor`"
            raise AfsError("the validation loss is not finite", f"step {step}", fix)
        loss = total / tokens
        best = loss < self.best_loss
        if best:
            self.best_loss, self.best_step = loss, step
            # `+ 0` copies: the optimizer replaces arrays, but nothing promises that it always will.
            self.best_weights = {name: array + 0 for name, array in adapter_weights(self.model).items()}
            mx.eval(self.best_weights)
        self.on_event(Validated(step, loss, tokens, best, time.monotonic() - self.started))
        return loss

    def prefix_output(self, which: str, number: int, batch: Batch) -> mx.array | None:
        """The frozen blocks' output for a batch, None where every block is trained."""
        return self.prefix.hidden((which, number), batch) if self.prefix else None


def _number(scalar: mx.array) -> float:
    """A scalar array as a float; waits for it."""
    value: Any = scalar.item()
    return float(value)


def _windows(order: list[int], size: int) -> Iterator[list[int]]:
    """Micro-batches per optimizer step; the last window keeps what is left."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _planned(
    model: nn.Module,
    recipe: Recipe,
    train_set: TokenisedSet,
    valid_set: TokenisedSet,
    groups: list[list[int]],
    total_steps: int,
) -> Planned:
    lengths = [[len(train_set.rows[i].tokens) for i in group] for group in groups]
    padded = sum(len(group) * max(group) for group in lengths)
    real = sum(map(sum, lengths))
    return Planned(
        total_steps=total_steps,
        train_rows=len(train_set.rows),
        valid_rows=len(valid_set.rows),
        dropped_rows=train_set.dropped + valid_set.dropped,
        train_tokens=real,
        supervised_tokens=train_set.supervised_tokens,
        trainable_parameters=sum(array.size for array in adapter_weights(model).values()),
        padding_share=1 - real / padded,
    )


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


@contextmanager
def _checkpointed(model: nn.Module, seed: int) -> Iterator[None]:
    """Recompute each block in the backward pass; the block class gets its own call back afterwards."""
    block = type(model.layers[0])
    original: Any = block.__call__
    seeds = np.random.default_rng(seed)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        dropout_seed = int(seeds.integers(2**63))

        def inner(parameters: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            # The backward pass must drop what the forward pass dropped: its gradient is wrong for any other mask.
            mx.random.seed(dropout_seed)
            self.update(parameters)
            return original(self, *args, **kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args, **kwargs)

    block.__call__ = call
    try:
        yield
    finally:
        block.__call__ = original
