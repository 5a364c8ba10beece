"""What a micro-batch costs, counted from shapes: multiplications for time, bytes for memory, by part.

The counts are priors: the probe corrects each part by a factor of its own. What matters is how they change with the
batch and with the recipe. The constants of memory were fitted on a CPU, in float32, to blocks of smollm2-135m's size.
"""

from dataclasses import dataclass

import numpy as np

from afs_mlx.engine.training.planning.cells import Cells
from afs_mlx.engine.training.planning.shapes import Column, Columns, ModelShape
from afs_mlx.schema.recipe import Recipe

FIXED_TOKENS = 8  # a pass over the weights takes about as long as so many tokens' computation, however few there are
ATTENTION_SLOWNESS = 3.0  # a multiplication there takes so many times one in a large matrix
# Of one block, as multiples of what the gradient keeps of a token there:
FORWARD = 1.2  # what exists while it is computed
BACKWARD = 1.5  # what exists, beside what was kept, while it is differentiated
TAIL_BACKWARD = 2.2  # likewise of the last block's tail, of what is kept there
RECOMPUTED = 3.0  # what exists while it is computed again and differentiated
DROPPED = 1.25  # elements that dropout keeps of each one of an input: the rest and a mask of bytes
SCORES = 4.5  # matrices of scores that exist while one of our query blocks is differentiated
PLAIN_SCORES = 2.4  # likewise of mlx's attention
FORWARD_SCORES, PLAIN_FORWARD_SCORES = 3.0, 1.0  # likewise forward
LOGIT_COPIES = 10.5  # logits and what their exponentials are made from; mlx runs ahead of the slower kernels
PLAIN_LOGIT_COPIES = 4  # where all logits exist at once and mlx makes the loss of them
HEAD_STATES = 2  # hidden states of answers and their targets' rows
CHUNK_LOGITS = 1000  # head_chunk counts logits in thousands
LEAST_SLICE = 256  # the head's slice of the vocabulary is never narrower

type Parts = dict[str, Column]


def work(columns: Columns, model: ModelShape, recipe: Recipe, *, training: bool) -> Parts:
    """Floating point operations of one pass, forward alone or with the gradient.

    Frozen weights get no gradient: a trained block costs forward and once as much towards its input. Gradient
    checkpointing adds a second forward. Blocks below the adapted ones count where their output is not kept.
    """
    adapted = model.adapted_blocks(recipe)
    again = training and recipe.grad_checkpoint
    passes = 2 * (1 + training + again)
    parameters = adapted * model.block_parameters * columns.tokens
    if recipe.speed.lean:
        parameters = parameters - model.tail_parameters * (columns.tokens - columns.supervised)
    adapter = (6 if training else 2) * model.trained_parameters(recipe) * columns.tokens
    products = 2 + 4 * training + 2 * again
    below = 0 if recipe.speed.keep_frozen else model.blocks - adapted
    head = 4 if training or recipe.speed.supervised_head else 2  # ours makes the loss with its gradient
    cells = Cells.of(columns, recipe)
    scores = (products * adapted + 2 * below) * cells.made + 2 * training * adapted * cells.again
    return {
        "fixed": np.full_like(columns.tokens, passes * (adapted + below) * model.block_parameters * FIXED_TOKENS / 2),
        "blocks": passes * parameters + adapter + 2 * below * model.block_parameters * columns.tokens,
        "attention": 2 * model.query_width * ATTENTION_SLOWNESS * scores,
        "head": head * model.vocabulary * model.width * columns.scored,
    }


def frozen_work(columns: Columns, model: ModelShape, recipe: Recipe) -> Parts:
    """Likewise, of running the blocks below the adapted ones once."""
    below = model.blocks - model.adapted_blocks(recipe)
    return {
        "fixed": np.full_like(columns.tokens, below * model.block_parameters * FIXED_TOKENS),
        "blocks": 2 * below * model.block_parameters * columns.tokens,
        "attention": 4 * below * model.query_width * ATTENTION_SLOWNESS * Cells.of(columns, recipe).made,
    }


@dataclass(frozen=True)
class _Moment:
    """What exists at one point of a pass: elements, scores of a head, logits, and copies of the adapter's gradient."""

    elements: Column
    scores: Column
    logits: Column
    gradients: float


def held(columns: Columns, model: ModelShape, recipe: Recipe, *, training: bool) -> Parts:
    """Bytes above what stays, at the worst moment of one pass.

    With the gradient, what every adapted block keeps waits for the backward pass; the worst moment is in the head, in
    the last block, in the one below or, for a large adapter, at the end. Checkpointed, a block keeps its input alone.
    Forward alone holds one block's.
    """
    cells, size = Cells.of(columns, recipe), model.activation_bytes
    way = _checkpointed if recipe.grad_checkpoint else _backward
    moments = (way if training else _forward)(columns, cells, model, recipe)
    adapter = 4 * model.trained_parameters(recipe)
    waits = training and recipe.accumulation > 1
    parts = {
        "gradients": np.stack(
            [np.full_like(m.elements, adapter * (m.gradients * (1 + waits) + waits)) for m in moments]
        ),
        "activations": size * np.stack([m.elements for m in moments]),
        "attention": size * model.heads * np.stack([m.scores for m in moments]),
        "head": 4 * np.stack([m.logits for m in moments]),
    }
    total: Column = sum(parts.values(), np.zeros_like(parts["head"]))
    worst = np.argmax(total, axis=0), np.arange(len(columns.tokens))
    return {name: part[worst] for name, part in parts.items()}


def _forward(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[_Moment]:
    block = FORWARD * _kept(model, recipe)[0] * columns.tokens
    zero = np.zeros_like(block)
    head = _head(columns, model, recipe)
    return [
        _Moment(block, FORWARD_SCORES * cells.largest, zero, 0),
        _Moment(model.width * columns.tokens, zero, head, 0),
    ]


def _backward(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[_Moment]:
    adapted = model.adapted_blocks(recipe)
    token, tail = _kept(model, recipe)
    tokens, answers = columns.tokens, columns.supervised if recipe.speed.lean else columns.tokens
    block = token * tokens + cells.masks
    last = block - tail * (tokens - answers)
    stored, scores = (adapted - 1) * block + last, adapted * cells.kept
    computed, zero = _scores(cells, recipe), np.zeros_like(block)
    moments = [
        _Moment(stored, scores, _head(columns, model, recipe), 0),
        _Moment(stored + TAIL_BACKWARD * tail * answers, scores, zero, 0),
        _Moment((adapted - 1) * block + (1 + BACKWARD) * (token - tail) * tokens, scores + computed, zero, 0),
    ]
    if adapted > 1:
        working = BACKWARD * block
        scores = (adapted - 1) * cells.kept + computed
        moments.append(_Moment((adapted - 1) * block + working, scores, zero, 1 / adapted))
        moments.append(_Moment(block + working, cells.kept + computed, zero, 1))
    return moments


def _checkpointed(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[_Moment]:
    adapted = model.adapted_blocks(recipe)
    token, tail = _kept(model, recipe)
    tokens, answers = columns.tokens, columns.supervised if recipe.speed.lean else columns.tokens
    inputs = model.width * adapted * tokens
    again = token * tokens - (tail * (tokens - answers) if adapted == 1 else 0)
    scores, zero = cells.kept + _scores(cells, recipe), np.zeros_like(inputs)
    return [
        _Moment(inputs, zero, _head(columns, model, recipe), 0),
        _Moment(inputs + RECOMPUTED * again, scores, zero, 1 / adapted),
        _Moment(RECOMPUTED * again, scores, zero, 1),
    ]


def _kept(model: ModelShape, recipe: Recipe) -> tuple[float, float]:
    """Elements that the backward pass of a block needs of a token: in all, and of the part behind attention."""
    heads = model.query_width + 2 * model.kv_heads * model.head_width
    # Gate, up and their product; mlx's own gate keeps its sigmoid too.
    tail = model.query_width + 3 * model.width + (3 if recipe.speed.fast_exp else 4) * model.feed_forward
    # Dropout keeps each adapted matrix's input anew, and what was dropped; DoRA its output before the length.
    adapter = model.target_sides / 2 * (DROPPED * (recipe.dropout > 0) + (recipe.method == "dora"))
    return 2 * model.width + 2 * heads + tail + adapter, tail


def _scores(cells: Cells, recipe: Recipe) -> Column:
    return (SCORES if recipe.speed.fast_exp else PLAIN_SCORES) * cells.largest


def _head(columns: Columns, model: ModelShape, recipe: Recipe) -> Column:
    """Elements, all of float32: logits that exist at a time, a slice of the vocabulary after the other, and states."""
    speed = recipe.speed
    copies = LOGIT_COPIES if speed.supervised_head else PLAIN_LOGIT_COPIES
    every = columns.scored * model.vocabulary
    if speed.head_chunk and speed.supervised_head:
        every = np.minimum(every, np.maximum(speed.head_chunk * CHUNK_LOGITS, LEAST_SLICE * columns.scored))
    states = HEAD_STATES * model.width * columns.scored
    return copies * every + states
