"""A batch's summed loss and its gradients, by the ways that the recipe's switches choose. Knows no optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.engine.training.batches import Batch, batch_of, shared_tokens
from afs_mlx.engine.training.compute.frozen import Budget, FrozenRows, cache_key, rows_hash
from afs_mlx.engine.training.compute.head import Head
from afs_mlx.engine.training.compute.layout import Layout
from afs_mlx.engine.training.compute.lean import LeanForward, is_lean
from afs_mlx.engine.training.compute.padded import (
    head_is_plain,
    padded_hidden,
    padded_logits,
    recomputed_blocks,
)
from afs_mlx.engine.training.dropout import Keys, key_dropouts
from afs_mlx.engine.training.events import Prepared
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe

COMPILED_LENGTHS = 32  # where steps are compiled, lengths are rounded up to a multiple of this

NO_KEY = mx.zeros((2,), dtype=mx.uint32)  # where nothing is dropped

type Parameters = dict[str, Any]


@dataclass(frozen=True)
class Ways:
    """The switches as they apply to this model on this device."""

    lean: bool
    supervised_head: bool
    fast_exp: bool
    compiled: bool
    shared: int
    frozen_blocks: int

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, rows: Sequence[Row]) -> "Ways":
        speed = recipe.speed
        on_cpu = mx.default_device() == mx.cpu
        lean = speed.lean and is_lean(model)
        blocks = len(model.layers)
        adapted = blocks if recipe.layers < 0 else recipe.layers
        return cls(
            lean=lean,
            supervised_head=speed.supervised_head and (lean or head_is_plain(model)),
            fast_exp=lean and speed.fast_exp and on_cpu,
            compiled=not on_cpu if speed.compile == "auto" else speed.compile == "on",
            shared=shared_tokens(rows) if lean and speed.shared_prompt else 0,
            frozen_blocks=blocks - adapted if lean and speed.keep_frozen else 0,
        )


class Losses:
    """The loss over batches of `rows`, the training and the validation rows one after the other."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, rows: Sequence[Row], cache_folder: Path | None, base: str
    ) -> None:
        self._model, self._recipe, self._rows = model, recipe, rows
        self.ways = ways = Ways.of(model, recipe, rows)
        self._keys = Keys(mx.random.key(recipe.seed))
        key_dropouts(model, self._keys)
        self._lean = (
            LeanForward(model, self._keys, fast_exp=ways.fast_exp, recompute=recipe.grad_checkpoint)
            if ways.lean
            else None
        )
        self._head = Head(model) if ways.supervised_head else None
        self._compiled: dict[tuple[int, bool], Callable[..., Any]] = {}
        self.frozen: FrozenRows | None = None
        if ways.frozen_blocks and self._lean:
            model.eval()
            budget = self._budget(cache_folder, base)
            arguments = rows, ways.frozen_blocks, ways.shared, recipe.batch_tokens, budget
            self.frozen = FrozenRows(self._lean, *arguments)

    def prepare(self, on_event: Callable[[Prepared], None]) -> None:
        """Run the frozen blocks, where any are."""
        if self.frozen:
            self.frozen.prepare(on_event)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows of `numbers`, shaped for the way in use."""
        return batch_of(self._rows, numbers, self.ways.shared, COMPILED_LENGTHS if self.ways.compiled else 1)

    def loss(self, parameters: Parameters, batch: Batch) -> mx.array:
        """Σ weight · -log p over the batch, float32 scalar, without dropout."""
        self._model.eval()
        layout, hidden = Layout.of(batch), self._start(batch)
        tokens, positions, targets, weights = _arrays(batch)
        return self._loss(parameters, layout, hidden, tokens, positions, targets, weights, NO_KEY)

    def loss_and_gradients(self, parameters: Parameters, batch: Batch, key: mx.array) -> tuple[mx.array, Parameters]:
        """The same with dropout drawn from `key`, and the gradients of the sum."""
        self._model.train()
        layout, hidden = Layout.of(batch), self._start(batch)
        arrays = _arrays(batch)
        if not self.ways.compiled or layout.beside is not None:
            return self._gradients(parameters, layout, hidden, *arrays, key)
        which = layout.rows, hidden is not None
        if which not in self._compiled:
            # What a row's length and number of answers changes are shapes, which mlx compiles for by itself.
            self._compiled[which] = mx.compile(lambda parameters, *rest: self._gradients(parameters, layout, *rest))
        result: tuple[mx.array, Parameters] = self._compiled[which](parameters, hidden, *arrays, key)
        self._keys.current = NO_KEY  # tracing left its own there
        return result

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, gradients are those of the recipe; outside, the model is mlx-lm's again."""
        if self._recipe.grad_checkpoint and not self.ways.lean:
            with recomputed_blocks(self._model, self._keys):
                yield
        else:
            yield

    def _gradients(self, parameters: Parameters, *arguments: Any) -> tuple[mx.array, Parameters]:
        result: tuple[mx.array, Parameters] = mx.value_and_grad(self._loss)(parameters, *arguments)
        return result

    def _loss(
        self,
        parameters: Parameters,
        layout: Layout,
        hidden: mx.array | None,
        tokens: mx.array,
        positions: mx.array,
        targets: mx.array,
        weights: mx.array,
        key: mx.array,
    ) -> mx.array:
        self._keys.current = key
        self._model.update(parameters)
        if self._head is None:
            logits = self._logits(layout, hidden, tokens)[positions].astype(mx.float32)
            return mx.sum(weights * nn.losses.cross_entropy(logits, targets, reduction="none"))
        output = self._hidden(layout, hidden, tokens, positions)
        cells = self._recipe.speed.head_chunk * 1000
        return self._head.summed_loss(output, targets, weights, cells, fast_exp=self.ways.fast_exp)

    def _hidden(self, layout: Layout, hidden: mx.array | None, tokens: mx.array, picked: mx.array | None) -> mx.array:
        """The backbone's output at `picked`."""
        if self._lean is None:
            return padded_hidden(self._model, tokens, layout, picked)
        lean = self._lean
        start = self.ways.frozen_blocks if hidden is not None else 0
        return lean.norm(lean.run(lean.embed(tokens) if hidden is None else hidden, layout, start, lean.blocks, picked))

    def _logits(self, layout: Layout, hidden: mx.array | None, tokens: mx.array) -> mx.array:
        if self._lean is None:
            return padded_logits(self._model, tokens, layout)
        model: Any = self._model
        project = model.lm_head if hasattr(model, "lm_head") else model.model.embed_tokens.as_linear
        logits: mx.array = project(self._hidden(layout, hidden, tokens, None))
        return logits

    def _start(self, batch: Batch) -> mx.array | None:
        """Where the trained blocks begin; None where all blocks are run."""
        return mx.stop_gradient(self.frozen.hidden(batch)) if self.frozen else None

    def _budget(self, folder: Path | None, base: str) -> Budget:
        speed = self._recipe.speed
        facts = {
            "base": base,
            "rows": rows_hash(self._rows),
            "blocks": self.ways.frozen_blocks,
            "shared": self.ways.shared,
            "batch_tokens": self._recipe.batch_tokens,
            "fast_exp": self.ways.fast_exp,
            "dtype": str(self._model.model.norm.weight.dtype),
            "mlx": version("mlx"),
        }
        return Budget(
            memory_bytes=int(speed.memory_gb * 1e9),
            disk_bytes=int(speed.disk_gb * 1e9),
            folder=folder if base else None,
            key=cache_key(facts),
        )


def _arrays(batch: Batch) -> tuple[mx.array, ...]:
    return tuple(mx.array(each) for each in (batch.tokens, batch.positions, batch.targets, batch.weights))
