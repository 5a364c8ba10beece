"""Fused against base + adapter: nothing where nothing differs, at answer positions only."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase, load_base
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.fusing.agreement import GREEDY_TOKENS, POSITIONS_PER_ROW, agreement, expected
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message

SHORT = Example(messages=(Message(role="user", content="lda"), Message(role="assistant", content="sta $10")))
LONG = Example(
    messages=(Message(role="user", content="lda"), Message(role="assistant", content="sta $10\n" * POSITIONS_PER_ROW))
)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(tiny_base)


def test_a_model_agrees_with_itself(base: LoadedBase) -> None:
    wanted = expected(base, [SHORT, LONG])
    found = agreement(wanted, base)
    assert (found.kl, found.top1, found.rows) == (pytest.approx(0, abs=1e-6), 1.0, 2)
    assert found.positions == len(wanted[0].positions) + POSITIONS_PER_ROW


def test_the_positions_are_those_before_the_answer_s_tokens(base: LoadedBase) -> None:
    (row,) = expected(base, [SHORT])
    assert base.tokenizer.decode(row.tokens[row.positions[:-1] + 1].tolist()) == "sta $10"
    assert row.log_probabilities.shape == (len(row.positions), 704)


def test_another_model_does_not_agree(base: LoadedBase, tmp_path: Path) -> None:
    build_tiny_qwen2(tmp_path / "other", seed=1)
    found = agreement(expected(base, [LONG]), load_base(tmp_path / "other"))
    assert found.kl > 0.1
    assert found.top1 < 0.5


def test_a_question_alone_gets_the_reference_s_own_answer(base: LoadedBase) -> None:
    wanted = expected(base, [[Message(role="user", content="lda")]])
    assert 1 <= len(wanted[0].positions) <= GREEDY_TOKENS
    followers = wanted[0].tokens[wanted[0].positions[:-1] + 1]
    assert wanted[0].log_probabilities.argmax(axis=1)[:-1].tolist() == followers.tolist()


def test_a_model_that_answers_with_nan_is_refused(base: LoadedBase) -> None:
    def broken(tokens: mx.array) -> mx.array:
        return mx.full((1, tokens.shape[1], 704), float("nan"))

    with pytest.raises(AfsError, match="NaN or infinities"):
        agreement(expected(base, [SHORT]), replace(base, model=broken))


def test_without_any_answer_there_is_nothing_to_compare(base: LoadedBase) -> None:
    with pytest.raises(AfsError, match="no conversation holds an answer"):
        expected(base, [])
