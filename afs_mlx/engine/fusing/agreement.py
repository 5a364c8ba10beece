"""How much a fused model answers as base and adapter do, on conversations. Knows no thresholds.

The two are never in memory together: what the first says is kept, then the second is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase, greedy_tokens
from afs_mlx.engine.fusing.adding import Floats
from afs_mlx.engine.training.rows import row_of
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message

POSITIONS_PER_ROW = 32
GREEDY_TOKENS = 24
MAX_TOKENS = 1024

# For adapters with neither validation rows nor a suite on this machine.
BUILT_IN = (
    "What does this code do?\n\n```asm\n  rep #$20\n  lda $10\n  clc\n  adc #$0004\n  sta $10\n```",
    "Make this shorter.\n\n```asm\n  lda #$00\n  sta $20\n```",
    "Write a routine that adds two bytes.",
    "Which register holds the screen brightness?",
    "How many cycles does `lda $10` take?",
    "Find the bug.\n\n```asm\n  ldx #$10\nloop:\n  lda $1000,x\n  bne loop\n```",
    "Explain in one sentence what a stack is.",
    "List three uses of a loop in a program.",
)


@dataclass(frozen=True)
class Expected:
    """What base and adapter say: a row's tokens, and log-probabilities (n, vocab) of the token after `positions`."""

    tokens: np.ndarray
    positions: np.ndarray
    log_probabilities: Floats


@dataclass(frozen=True)
class Agreement:
    """The mean KL divergence (nats) of fused from base + adapter, and how often both find the same token likeliest."""

    kl: float
    top1: float
    positions: int
    rows: int


def expected(reference: LoadedBase, conversations: Sequence[Example | Sequence[Message]]) -> list[Expected]:
    """Ask base + adapter, at answer positions spread evenly over each row.

    A conversation without an answer gets the reference's own, the likeliest token each time.
    """
    found = []
    for conversation in conversations:
        tokens, answered = _tokens(reference, conversation)
        positions = np.nonzero(answered[:MAX_TOKENS])[0] - 1
        positions = positions[positions >= 0]
        if len(positions) > POSITIONS_PER_ROW:
            positions = positions[np.linspace(0, len(positions) - 1, POSITIONS_PER_ROW).astype(int)]
        if len(positions):
            tokens = tokens[: positions[-1] + 1]
            found.append(Expected(tokens, positions, _log_probabilities(reference, tokens, positions)))
    if not found:
        raise AfsError("no conversation holds an answer to compare at", str(reference.folder), "name other rows")
    return found


def agreement(wanted: Sequence[Expected], fused: LoadedBase) -> Agreement:
    """Ask the fused model the same. Raises AfsError where it answers with NaN."""
    divergences, same = [], []
    for row in wanted:
        found = _log_probabilities(fused, row.tokens, row.positions)
        divergences.append((np.exp(row.log_probabilities) * (row.log_probabilities - found)).sum(axis=1))
        same.append(row.log_probabilities.argmax(axis=1) == found.argmax(axis=1))
    kl = float(np.concatenate(divergences).mean())
    if not np.isfinite(kl):
        fix = "store it unquantised, or in bfloat16; check the adapter: afs-mlx adapters inspect"
        raise AfsError("the fused model answers with NaN or infinities", str(fused.folder), fix)
    matches = np.concatenate(same)
    return Agreement(max(kl, 0.0), float(matches.mean()), len(matches), len(wanted))


def _tokens(base: LoadedBase, conversation: Example | Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (seq,), and which of them belong to an answer."""
    if isinstance(conversation, Example):
        row = row_of(conversation, base.tokenizer)
        return row.tokens, row.supervised
    messages = [message.as_dict() for message in conversation]
    text = base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = list(base.tokenizer.encode(text, add_special_tokens=False))
    answer = greedy_tokens(base, prompt, GREEDY_TOKENS)
    return np.array(prompt + answer, np.int32), np.array([False] * len(prompt) + [True] * len(answer))


def _log_probabilities(base: LoadedBase, tokens: np.ndarray, positions: np.ndarray) -> Floats:
    logits = base.model(mx.array(tokens)[None])[0][mx.array(positions)].astype(mx.float32)
    found: Floats = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return found
