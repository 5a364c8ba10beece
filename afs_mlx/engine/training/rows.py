"""Conversations → token ids and how much each of them is to be learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """One conversation.

    `tokens` is (seq,) int32. `weights` is (seq,) float32: how much predicting token i from the tokens before it counts,
    0 where it is context alone; a boolean mask is taken as weights of 1 and 0.
    """

    tokens: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", np.asarray(self.weights, dtype=np.float32))

    @property
    def supervised(self) -> np.ndarray:
        """(seq,) bool: which tokens are learnt."""
        return self.weights > 0

    @property
    def supervised_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class TokenisedSet:
    """The rows of one file; how many the length policy left out, and how many lost the start of their prompt to it.

    `numbers` are the rows' places among the examples, from 0.
    """

    rows: list[Row]
    dropped: int
    truncated: int = 0
    numbers: tuple[int, ...] = ()

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def tokenise(examples: Sequence[Example], tokenizer: Any, recipe: Recipe, where: str) -> TokenisedSet:
    """Tokenise every example; rows over `recipe.max_seq_tokens` fall to `recipe.over_long`.

    Raises AfsError that lists the over-long rows (policy error) or the rows that have nothing to learn, and when all
    rows fell to the policy.
    """
    limit = recipe.max_seq_tokens
    rows: list[Row] = []
    too_long: list[str] = []
    nothing: list[str] = []
    numbers: list[int] = []
    truncated = 0
    for number, example in enumerate(examples, start=1):
        pieces = _pieces(example, tokenizer)
        row = _joined(pieces)
        if not row.supervised_tokens:
            nothing.append(f"row {number}: every answer weighs 0")
            continue
        if len(row.tokens) <= limit:
            rows.append(row)
            numbers.append(number - 1)
        elif recipe.over_long == "truncate" and (shorter := _truncated(pieces, limit)) is not None:
            rows.append(shorter)
            numbers.append(number - 1)
            truncated += 1
        else:
            too_long.append(f"row {number}: {len(row.tokens)} tokens")
    if nothing:
        raise problems(nothing, "rows have nothing to learn", where, "give an answer a weight, or leave the row out")
    if too_long and recipe.over_long == "error":
        raise problems(
            too_long,
            f"rows are longer than max_seq_tokens = {limit}",
            where,
            "shorten them, raise the limit (--set max_seq_tokens=…), leave them out (--set over_long=drop) "
            "or let them lose the start of their prompt (--set over_long=truncate)",
        )
    if not rows:
        raise _all_fell(len(too_long), limit, where)
    return TokenisedSet(rows, len(too_long), truncated, tuple(numbers))


def row_of(example: Example, tokenizer: Any) -> Row:
    """Tokenise piece by piece, cut where each answer begins and ends.

    At inference the text up to an answer is tokenised alone; cutting there gives exactly those tokens. The answer's
    own tokens and the end-of-turn token after it are supervised, the template's line break behind them is not.
    """
    return _joined(_pieces(example, tokenizer))


@dataclass(frozen=True)
class _Piece:
    """Tokens in a row that share a weight; `fixed` ones are never cut."""

    tokens: list[int]
    weight: float
    fixed: bool


def _joined(pieces: Sequence[_Piece]) -> Row:
    tokens = [token for piece in pieces for token in piece.tokens]
    weights = [piece.weight for piece in pieces for _ in piece.tokens]
    return Row(np.array(tokens, dtype=np.int32), np.array(weights, dtype=np.float32))


def _pieces(example: Example, tokenizer: Any) -> list[_Piece]:
    """A row's tokens in order; the opening of a learnt answer (`<|im_start|>assistant`) is fixed as the answer is."""
    messages = [message.as_dict() for message in example.messages]
    bos = getattr(tokenizer, "bos_token_id", None)
    pieces: list[_Piece] = []
    done = ""
    for index, message in enumerate(example.messages):
        if message.role != "assistant":
            continue
        prompt = _render(tokenizer, messages[:index], open_answer=True)
        through = _render(tokenizer, messages[: index + 1], open_answer=False)
        if not prompt.startswith(done) or not through.startswith(prompt):
            raise AfsError(
                "the chat template rewrites earlier turns, so answers cannot be located",
                str(getattr(tokenizer, "name_or_path", "")),
                "use a base whose template appends turns, or give each answer a row of its own",
            )
        before = _encode(tokenizer, prompt[len(done) :])
        asked = _render(tokenizer, messages[:index], open_answer=False)
        opening = len(_encode(tokenizer, prompt[len(asked) :])) if prompt.startswith(asked) else 0
        pieces += _prompt_pieces(before, opening, message, None if pieces else bos)
        answer = _encode(tokenizer, through[len(prompt) :])
        learnt = _through_end_of_turn(answer, tokenizer)
        pieces += [_Piece(answer[:learnt], message.weight, message.weight > 0), _Piece(answer[learnt:], 0, False)]
        done = through
    return pieces


def _prompt_pieces(before: list[int], opening: int, message: Message, bos: int | None) -> list[_Piece]:
    """What stands before an answer: a BOS that the model needs, what may be cut, and the answer's opening."""
    first = 1 if bos is not None and before[:1] == [bos] else 0
    # Nothing predicts a row's first token, so an answer keeps a token before it also where a template opens none.
    last = max(first, len(before) - max(1, opening))
    return [
        _Piece(before[:first], 0, True),
        _Piece(before[first:last], 0, False),
        _Piece(before[last:], 0, message.weight > 0),
    ]


def _truncated(pieces: Sequence[_Piece], limit: int) -> Row | None:
    """The row cut down to `limit` tokens from its left; None where its learnt answers alone are too long."""
    excess = sum(len(piece.tokens) for piece in pieces) - limit
    kept = []
    for piece in pieces:
        cut = 0 if piece.fixed else min(max(excess, 0), len(piece.tokens))
        excess -= cut
        kept.append(_Piece(piece.tokens[cut:], piece.weight, piece.fixed))
    return _joined(kept) if excess <= 0 else None


def _all_fell(dropped: int, limit: int, where: str) -> AfsError:
    if not dropped:
        return AfsError("there are no rows", where, "add rows")
    return AfsError(
        f"no row is left: all {dropped} were dropped as longer than max_seq_tokens = {limit}",
        where,
        "raise max_seq_tokens (--set max_seq_tokens=…), or shorten the rows",
    )


def _through_end_of_turn(answer: list[int], tokenizer: Any) -> int:
    """How many tokens of an answer's text are to be learnt: up to its last end token, all where there is none."""
    ends = set(getattr(tokenizer, "eos_token_ids", None) or {tokenizer.eos_token_id})
    return next((index + 1 for index in range(len(answer) - 1, -1, -1) if answer[index] in ends), len(answer))


def _render(tokenizer: Any, messages: list[dict[str, str]], *, open_answer: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
