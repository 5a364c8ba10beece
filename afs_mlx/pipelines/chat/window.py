"""Which part of a long conversation still fits into the context: the oldest exchanges go first, whole."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

# No text has so few tokens that more characters than this for each token of context could fit.
MOST_CHARACTERS = 64


def first_kept(turns: Sequence[Message], before: int, prompt_tokens: Callable[[int], int], sampling: Sampling) -> int:
    """Where the part of `turns` begins that goes into the prompt; `before` is where it began so far.

    `prompt_tokens(start)` counts the prompt with `turns[start:]`. The answer keeps a quarter of the context (or
    `max_tokens`, where that is less). What overflows is cut to half of it, so that the beginning of the prompt, which
    the caches know, holds for a few questions more. `len(turns)` where nothing but the question is left.
    """
    limit = sampling.context_tokens
    starts = [n for n in range(len(turns)) if turns[n].role == "user" and n >= before] + [len(turns)]
    characters = MOST_CHARACTERS * limit
    while len(starts) > 1 and sum(len(turn.content) for turn in turns[starts[0] :]) > characters:
        del starts[0]
    if len(starts) == 1 or (
        starts[0] == before and prompt_tokens(before) <= limit - min(sampling.max_tokens, limit // 4)
    ):
        return starts[0]
    # Fewer turns are fewer tokens: the first start that is short enough.
    place = bisect_left(starts, True, hi=len(starts) - 1, key=lambda start: prompt_tokens(start) <= limit // 2)
    return starts[place]
