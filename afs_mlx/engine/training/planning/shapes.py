"""The shapes that a training's cost is counted from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afs_mlx.schema.recipe import Recipe

type Column = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class ModelShape:
    """A decoder of equal blocks, and what of the trainer applies to it on this device.

    `activation_bytes` is the size of an element that it computes with, `weight_bytes` all that its weights take in
    memory, at `weight_bits` a weight in the linear layers. `target_sides` is the sum of inputs and outputs of one
    block's adapted matrices: rank times that is what LoRA adds to a block.
    `lean`: our own forward pass knows its blocks; `plain_head`: its logits are one product; `own_attention`: ours may
    run, in float32 on a CPU. `smaller_base` is the 4-bit variant that `--base` could name where that takes less memory
    (on a CPU it is dequantised on load).
    """

    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    activation_bytes: int
    weight_bytes: int
    weight_bits: float
    target_sides: int
    lean: bool = True
    plain_head: bool = True
    own_attention: bool = True
    smaller_base: str = ""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def tail_parameters(self) -> int:
        """Output projection and feed-forward of a block; in the last one the lean pass runs them for answers only."""
        return self.query_width * self.width + 3 * self.width * self.feed_forward

    @property
    def block_parameters(self) -> int:
        return self.tail_parameters + self.width * (self.query_width + 2 * self.kv_heads * self.head_width)

    def adapted_blocks(self, recipe: Recipe) -> int:
        return self.blocks if recipe.layers < 0 else min(recipe.layers, self.blocks)

    def trained_parameters(self, recipe: Recipe) -> int:
        return self.adapted_blocks(recipe) * recipe.rank * self.target_sides

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with the switches as they apply to this model."""
        speed = recipe.speed
        lean = speed.lean and self.lean
        switches = {
            "lean": lean,
            "supervised_head": speed.supervised_head and (lean or self.plain_head),
            "keep_frozen": speed.keep_frozen and lean,
            "shared_prompt": speed.shared_prompt and lean,
            "fast_exp": speed.fast_exp and lean and self.own_attention,
        }
        return recipe.model_copy(update={"speed": speed.model_copy(update=switches)})


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch: `tokens` without padding, the `shared` ones that all rows begin with counted once; the `longest`
    row's tokens behind the shared ones; `supervised` positions whose logits are asked for."""

    tokens: int
    rows: int
    longest: int
    supervised: int
    shared: int = 0


@dataclass(frozen=True)
class Shapes:
    """The micro-batches of every epoch, of one validation pass, and the groups that the frozen blocks are run over.

    `kept_tokens` are those whose frozen outputs are kept; `answer_tokens` the lengths of the validation answers that
    samples are asked for.
    """

    train: tuple[tuple[BatchShape, ...], ...]
    valid: tuple[BatchShape, ...]
    kept_tokens: int
    frozen: tuple[BatchShape, ...] = ()
    answer_tokens: tuple[int, ...] = ()

    @property
    def every_train(self) -> tuple[BatchShape, ...]:
        return tuple(shape for epoch in self.train for shape in epoch)


@dataclass(frozen=True)
class Columns:
    """Many batch shapes as arrays, (batches,) each, in the units that cost is counted from."""

    tokens: Column  # that the blocks run over
    rows: Column  # that attention stands side by side
    longest: Column  # queries of a row there
    shared: Column  # tokens before them that every row looks back at
    supervised: Column  # that are learnt
    scored: Column  # that the head runs over

    @classmethod
    def of(cls, shapes: Sequence[BatchShape], recipe: Recipe) -> "Columns":
        """`recipe` with its switches as they apply."""
        if not shapes:
            return cls(*(np.zeros(0) for _ in range(6)))
        table = [(s.tokens, s.rows, s.longest, s.supervised, s.shared) for s in shapes]
        tokens, rows, longest, supervised, shared = np.array(table, dtype=np.float64).T
        if not recipe.speed.lean:
            longest, shared = longest + shared, np.zeros_like(shared)
            tokens = rows * longest
        scored = supervised if recipe.speed.supervised_head else tokens
        return cls(tokens, rows, longest, shared, supervised, scored)
