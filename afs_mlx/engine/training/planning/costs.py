"""What a micro-batch costs, counted from shapes: multiplications for time, bytes for memory, by part.

The counts are priors: the probe corrects each part by a factor of its own. What matters is how they change with the
batch and with the recipe. The constants of memory were fitted on a CPU, in float32, to blocks of smollm2-135m's size.
"""

import numpy as np

from afs_mlx.engine.training.planning.cells import Cells
from afs_mlx.engine.training.planning.shapes import Column, Columns, ModelShape
from afs_mlx.schema.recipe import Recipe

FIXED_TOKENS = 8  # a pass over the weights takes about as long as so many tokens' computation, however few there are
ATTENTION_SLOWNESS = 3.0  # a multiplication there takes so many times one in a large matrix
# Of one block, as shares of what the gradient keeps of a token there:
FORWARD = 0.8  # what exists while it is computed
BACKWARD = 1.6  # what exists, beside what was kept, while it is differentiated
TAIL_BACKWARD = 1.5  # likewise of the last block's tail, of what is kept there
RECOMPUTED = 2.5  # what exists while it is computed again and differentiated
SCORES = 3.0  # matrices of scores that exist while attention is computed, or differentiated
LOGIT_COPIES = 10  # logits and what their exponentials are made from
PLAIN_LOGIT_COPIES = 5  # with mlx's own exponential
HEAD_STATES = 5  # hidden states of answers, their targets' rows and gradients
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


def held(columns: Columns, model: ModelShape, recipe: Recipe, *, training: bool) -> Parts:
    """Bytes above what stays, at the worst moment of one pass.

    With the gradient, what every adapted block keeps waits for the backward pass; the worst moment is in the head, in
    the last block or in the one below. Checkpointed, a block keeps its input alone. Forward alone holds one block's.
    """
    cells, size = Cells.of(columns, recipe), model.activation_bytes
    moments = _forward(columns, cells, model, recipe)
    if training:
        moments = _checkpointed(columns, cells, model, recipe) if recipe.grad_checkpoint else []
        moments += _backward(columns, cells, model, recipe) if not recipe.grad_checkpoint else []
    elements, scores, logits = (np.stack(each) for each in zip(*moments, strict=True))
    total = size * (elements + model.heads * scores) + 4 * logits
    worst = np.argmax(total, axis=0), np.arange(len(columns.tokens))
    trained = 4 * model.trained_parameters(recipe) * training
    return {
        "gradients": np.full_like(columns.tokens, trained * (1 + (recipe.accumulation > 1))),
        "activations": size * elements[worst],
        "attention": size * model.heads * scores[worst],
        "head": 4 * logits[worst],
    }


type Moment = tuple[Column, Column, Column]  # elements, scores of one head, logits


def _forward(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[Moment]:
    block = FORWARD * _kept(model, recipe)[0] * columns.tokens
    zero = np.zeros_like(block)
    return [(block, SCORES * cells.largest, zero), (model.width * columns.tokens, zero, _head(columns, model, recipe))]


def _backward(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[Moment]:
    adapted = model.adapted_blocks(recipe)
    token, tail = _kept(model, recipe)
    tokens, answers = columns.tokens, columns.supervised if recipe.speed.lean else columns.tokens
    below = (adapted - 1) * token * tokens
    last = token * tokens - tail * (tokens - answers)
    zero = np.zeros_like(below)
    moments = [
        (below + last, adapted * cells.kept, _head(columns, model, recipe)),
        (below + last + TAIL_BACKWARD * tail * answers, adapted * cells.kept + SCORES * cells.largest, zero),
    ]
    if adapted > 1:
        scores = (adapted - 1) * cells.kept + SCORES * cells.largest
        moments.append((below + BACKWARD * token * tokens, scores, zero))
    return moments


def _checkpointed(columns: Columns, cells: Cells, model: ModelShape, recipe: Recipe) -> list[Moment]:
    inputs = model.width * model.adapted_blocks(recipe) * columns.tokens
    again = RECOMPUTED * _kept(model, recipe)[0] * columns.tokens
    zero = np.zeros_like(inputs)
    return [
        (inputs + again, cells.kept + SCORES * cells.largest, zero),
        (inputs, zero, _head(columns, model, recipe)),
    ]


def _kept(model: ModelShape, recipe: Recipe) -> tuple[float, float]:
    """Elements that the backward pass of a block needs of a token: in all, and of the part behind attention."""
    heads = model.query_width + 2 * model.kv_heads * model.head_width
    tail = model.query_width + 3 * model.width + 4 * model.feed_forward  # gate, up, sigmoid, their product
    return 2 * model.width + 2 * heads + tail, tail


def _head(columns: Columns, model: ModelShape, recipe: Recipe) -> Column:
    """Elements, all of float32: logits that exist at a time, a slice of the vocabulary after the other, and states."""
    speed = recipe.speed
    copies = LOGIT_COPIES if speed.fast_exp and speed.supervised_head else PLAIN_LOGIT_COPIES
    every = columns.scored * model.vocabulary
    if speed.head_chunk and speed.supervised_head:
        every = np.minimum(every, np.maximum(speed.head_chunk * CHUNK_LOGITS, LEAST_SLICE * columns.scored))
    states = HEAD_STATES * model.width * columns.scored
    return copies * every + states
