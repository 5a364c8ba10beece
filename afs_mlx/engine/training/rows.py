"""Conversations → token ids and which of them are to be learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.schema.example import Example
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """One conversation.

    `tokens` is (seq,) int32; `supervised` is (seq,) bool: token i is to be predicted from the tokens before it.
    """

    tokens: np.ndarray
    supervised: np.ndarray

    @property
    def supervised_tokens(self) -> int:
        return int(self.supervised.sum())


@dataclass(frozen=True)
class TokenisedSet:
    """The rows of one file and how many were dropped by the length policy."""

    rows: list[Row]
    dropped: int

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def tokenise(examples: Sequence[Example], tokenizer: Any, recipe: Recipe, where: str) -> TokenisedSet:
    """Tokenise every example; rows over `recipe.max_seq_tokens` fall to `recipe.over_long`.

    Raises AfsError that lists the over-long rows (policy error), or when no row is left.
    """
    rows: list[Row] = []
    too_long: list[str] = []
    for number, example in enumerate(examples, start=1):
        row = row_of(example, tokenizer)
        if len(row.tokens) <= recipe.max_seq_tokens:
            rows.append(row)
        else:
            too_long.append(f"row {number}: {len(row.tokens)} tokens")
    if too_long and recipe.over_long == "error":
        raise problems(
            too_long,
            f"rows are longer than max_seq_tokens = {recipe.max_seq_tokens}",
            where,
            "shorten them, raise the limit (--set max_seq_tokens=…) or leave them out (--set over_long=drop)",
        )
    if not rows:
        raise AfsError(f"no row is left: all {len(too_long)} were dropped as too long", where, "raise max_seq_tokens")
    return TokenisedSet(rows, len(too_long))


def row_of(example: Example, tokenizer: Any) -> Row:
    """Tokenise piece by piece, cut where each answer begins and ends.

    At inference the text up to an answer is tokenised alone; cutting there gives exactly those tokens. The answer's
    own tokens and the end-of-turn token after it are supervised, the template's line break behind them is not.
    """
    messages = [message.as_dict() for message in example.messages]
    tokens: list[int] = []
    supervised: list[bool] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
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
        answer = _encode(tokenizer, through[len(prompt) :])
        learnt = _through_end_of_turn(answer, tokenizer)
        tokens += before + answer
        supervised += [False] * len(before) + [True] * learnt + [False] * (len(answer) - learnt)
        done = through
    return Row(np.array(tokens, dtype=np.int32), np.array(supervised, dtype=bool))


def _through_end_of_turn(answer: list[int], tokenizer: Any) -> int:
    """How many tokens of an answer's text are to be learnt: up to its last end token, all where there is none."""
    ends = set(getattr(tokenizer, "eos_token_ids", None) or {tokenizer.eos_token_id})
    return next((index + 1 for index in range(len(answer) - 1, -1, -1) if answer[index] in ends), len(answer))


def _render(tokenizer: Any, messages: list[dict[str, str]], *, open_answer: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
