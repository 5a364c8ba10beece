"""Conversations as token ids: the template's control tokens are tokens, those that someone wrote are text.

Where no control token is written, the ids are those of training and evaluation. Knows no model, only its tokenizer.
"""

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from mlx_lm.tokenizer_utils import TokenizerWrapper

from afs_mlx.core.errors import AfsError
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

# Unicode's noncharacters "for internal use": no text has a reason to hold one.
MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
TOO_LONG_FIX = "shorten the question, /clear the conversation, or raise sampling.context_tokens in experts.toml"
SHORT = 64  # characters for each token of room below which nothing is estimated
NORMALISED = 4  # NFC may leave a quarter of the characters


class Prompts:
    """The prompts of one tokenizer; may be asked from several threads."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a fast tokenizer refuses two threads at once: "Already borrowed"

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation up to where the answer begins."""
        mark = self._unused_mark(messages)
        turns = [{"role": m.role, "content": self._marked(m, mark)} for m in messages]
        with self._lock:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            pieces = rendered.split(mark)
            return [i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False)]

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """The ids that every conversation which begins with `messages` begins with, whatever is asked then."""
        first, other = (self.tokens([*messages, Message(role="user", content=text)]) for text in ("a", "1"))
        return first[: common_prefix(first, other)]

    def fitting(self, messages: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
        """The token ids and how many the answer may have.

        Raises AfsError when the prompt leaves no room within `sampling.context_tokens`; text that is far too long is
        refused before it is tokenised.
        """
        limit = sampling.context_tokens
        characters = sum(len(message.content) for message in messages)
        if characters > SHORT * limit and (least := characters // (NORMALISED * self._longest_token)) >= limit:
            raise _too_long(f"at least {least:,}", limit)
        tokens = self.tokens(messages)
        room = min(sampling.max_tokens, limit - len(tokens))
        if room < 1:
            raise _too_long(str(len(tokens)), limit)
        return tokens, room

    @cached_property
    def _controls(self) -> dict[str, bool]:
        """Every added token by its text, and whether it is special; runs of spaces are ordinary text."""
        added = self._tokenizer.added_tokens_decoder.values()
        return {token.content: token.special for token in added if token.content.strip() and len(token.content) > 1}

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()))

    def _unused_mark(self, messages: Sequence[Message]) -> str:
        for mark in MARKS:
            if not any(mark in message.content for message in messages):
                return mark
        raise AfsError("the text holds all of Unicode's noncharacters from U+FDD0", "prompt", "take them out")

    def _marked(self, message: Message, mark: str) -> str:
        """The content with a mark inside each control token: it is encoded in parts, which only text can be.

        Special tokens are text whoever wrote them. Others, such as `<tool_call>`, are what system texts and answers are
        trained with; a person cannot write them.
        """
        content = message.content
        written = [text for text, special in self._controls.items() if special or message.role == "user"]
        if not any(text in content for text in written):
            return content
        # A look-ahead also finds those that overlap.
        starts = {found.start() + 1 for found in re.finditer(f"(?={'|'.join(map(re.escape, written))})", content)}
        cuts = [0, *sorted(starts), len(content)]
        return mark.join(content[a:b] for a, b in pairwise(cuts))


def common_prefix(first: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    pairs = zip(first, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(other)))


def _too_long(count: str, limit: int) -> AfsError:
    return AfsError(f"the prompt has {count} tokens, the limit is {limit}", "context_tokens", TOO_LONG_FIX)
