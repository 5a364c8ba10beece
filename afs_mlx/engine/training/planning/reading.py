"""The shapes of a model with adapters attached, and of the batches that the trainer makes of rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from afs_mlx.engine.training.batches import epoch_batches, group_by_length, shared_tokens
from afs_mlx.engine.training.compute.lean import is_lean
from afs_mlx.engine.training.compute.losses import COMPILED_LENGTHS
from afs_mlx.engine.training.compute.padded import head_is_plain
from afs_mlx.engine.training.lora import adapter_weights
from afs_mlx.engine.training.planning.shapes import BatchShape, ModelShape, Shapes
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.recipe import Recipe

MOST_EPOCHS = 8  # that rows are grouped for; later ones are taken to be like these

type Groups = list[list[int]]


def model_shape(model: nn.Module, smaller_base: str = "") -> ModelShape:
    """What the planner counts from; `smaller_base` is what `--base` could name instead, on a GPU."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    trained = adapter_weights(model)
    block, arguments = model.layers[0], model.args
    linears = [m for _, m in block.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)]
    weights = sum(_weights(linear) for linear in linears)
    computes = next(a for name, a in arrays.items() if name.endswith("norm.weight"))
    width = _fact(arguments, "hidden_size", computes.size)
    heads = _fact(arguments, "num_attention_heads", 1)
    kv_heads = _fact(arguments, "num_key_value_heads", heads)
    head_width = _fact(arguments, "head_dim", width // heads)
    attention = width * head_width * (2 * heads + 2 * kv_heads)
    on_cpu, lean = mx.default_device() == mx.cpu, is_lean(model)
    return ModelShape(
        blocks=len(model.layers),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        feed_forward=max(1, round((weights - attention) / (3 * width))),
        vocabulary=_fact(arguments, "vocab_size", 1),
        activation_bytes=int(computes.dtype.size),
        weight_bytes=sum(array.nbytes for name, array in arrays.items() if name not in trained),
        weight_bits=8 * sum(_bytes(linear) for linear in linears) / max(1, weights),
        target_sides=_target_sides(model.layers[-1]),
        lean=lean,
        plain_head=head_is_plain(model),
        own_attention=on_cpu and computes.dtype == mx.float32,
        smaller_base="" if on_cpu else smaller_base,
    )


def _fact(arguments: Any, name: str, default: int) -> int:
    """A dimension by its usual name, also where a text model's stand in a table of their own."""
    table = getattr(arguments, "text_config", None)
    value = getattr(arguments, name, None) or (table.get(name) if isinstance(table, dict) else None)
    return int(value or default)


def _weights(linear: Any) -> int:
    """Also where several are packed into one integer."""
    size = int(linear.weight.size)
    return size * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else size


def _bytes(linear: Any) -> int:
    parts: list[mx.array | None] = [linear.get(name) for name in ("weight", "scales", "biases")]
    return sum(part.nbytes for part in parts if part is not None)


def _target_sides(block: nn.Module) -> int:
    adapted: Iterator[Any] = (module for _, module in block.named_modules() if "lora_a" in module)
    return sum(int(module.lora_a.shape[0] + module.lora_b.shape[-1]) for module in adapted)


class RowShapes:
    """The batches of a training and its validation rows as shapes; grouped once for each way to group them.

    Row numbers count the training rows first, as the trainer's do.
    """

    def __init__(self, model: nn.Module, shape: ModelShape, train: Sequence[Row], valid: Sequence[Row]) -> None:
        self.rows = [*train, *valid]
        self._train, self._shape = train, shape
        self._on_cpu = mx.default_device() == mx.cpu
        self._ends = np.array([np.flatnonzero(row.supervised)[-1] for row in self.rows])
        self._learnt = np.array([row.supervised_tokens for row in self.rows])
        self._shared = shared_tokens(self.rows)
        self._answers = tuple(_answer_tokens(row) for row in valid)
        self._known: dict[tuple[Any, ...], Shapes] = {}
        self._grouped: dict[tuple[int, int, int], list[Groups]] = {}

    def __call__(self, recipe: Recipe) -> Shapes:
        key = (
            recipe.batch_tokens,
            recipe.epochs,
            recipe.seed,
            recipe.samples,
            self.shared(recipe),
            self._round(recipe),
        )
        if key not in self._known:
            self._known[key] = self._shapes(recipe)
        return self._known[key]

    def shared(self, recipe: Recipe) -> int:
        """Tokens that are computed once for all rows."""
        speed = self._shape.applied(recipe).speed
        return self._shared if speed.shared_prompt else 0

    @property
    def first_valid(self) -> Row:
        return self.rows[len(self._train)]

    def epochs(self, recipe: Recipe) -> list[Groups]:
        """The row numbers of every micro-batch, by epoch."""
        key = recipe.batch_tokens, recipe.epochs, recipe.seed
        if key not in self._grouped:
            few = range(1, min(recipe.epochs, MOST_EPOCHS) + 1)
            made = [epoch_batches(self._train, recipe.batch_tokens, recipe.seed, epoch) for epoch in few]
            self._grouped[key] = [made[number % len(made)] for number in range(recipe.epochs)]
        return self._grouped[key]

    def batch(self, numbers: Sequence[int], recipe: Recipe) -> BatchShape:
        """As `batch_of` shapes it."""
        shared, to = self.shared(recipe), self._round(recipe)
        own = self._ends[list(numbers)] - shared
        longest = -(-int(own.max()) // to) * to
        tokens = shared + (len(own) * longest if to > 1 else int(own.sum()))
        learnt = -(-int(self._learnt[list(numbers)].sum()) // to) * to
        return BatchShape(tokens, len(own), longest, learnt, shared)

    def _shapes(self, recipe: Recipe) -> Shapes:
        every, first = range(len(self.rows)), len(self._train)
        epochs = self.epochs(recipe)
        seen = {id(groups): tuple(self.batch(group, recipe) for group in groups) for groups in epochs}
        valid, frozen = (group_by_length(self.rows, part, recipe.batch_tokens) for part in (every[first:], every))
        count = min(recipe.samples, len(self._answers))
        return Shapes(
            train=tuple(seen[id(groups)] for groups in epochs),
            valid=tuple(self.batch(group, recipe) for group in valid),
            kept_tokens=int(self._ends.sum()) - self.shared(recipe) * len(self.rows),
            frozen=tuple(self.batch(group, recipe) for group in frozen),
            answer_tokens=(round(float(np.mean(self._answers))),) * count if count else (),
        )

    def _round(self, recipe: Recipe) -> int:
        compiled = not self._on_cpu if recipe.speed.compile == "auto" else recipe.speed.compile == "on"
        return COMPILED_LENGTHS if compiled else 1


def _answer_tokens(row: Row) -> int:
    learnt = row.supervised[int(np.argmax(row.supervised)) :]
    return int(np.argmin(learnt)) or len(learnt)
