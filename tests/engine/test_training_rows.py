"""Which tokens are learnt: the answers and the token that ends them, cut where inference cuts."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.training.rows import Row, row_of, tokenise
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe

ANSWERS = ["```asm\n  stz $10\n```\nWhy: one store.", "Not when A is read.", "  inc\n  rts  "]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_base(tiny_base).tokenizer


def example(*turns: str, system: str = "") -> Example:
    """Turns in alternation, the first by the user."""
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns)]
    return Example(messages=tuple(messages))


def conversation(system: str = "You are Din.") -> Example:
    first, second, third = ANSWERS
    return example("lda #$00 sta $10", first, "When is it wrong?", second, "clc adc #$01", third, system=system)


def pieces(row: Row, tokenizer: Any) -> list[tuple[bool, str]]:
    """The row as text, cut where the mask changes."""
    marked = zip(row.supervised.tolist(), row.tokens.tolist(), strict=True)
    return [
        (learnt, tokenizer.decode([t for _, t in run])) for learnt, run in groupby(marked, key=lambda pair: pair[0])
    ]


@pytest.mark.parametrize("system", ["You are Din.", ""], ids=["own system text", "the template's"])
def test_every_answer_with_its_end_token_is_learnt_and_nothing_else(tokenizer: Any, system: str) -> None:
    example = conversation(system)
    cut = pieces(row_of(example, tokenizer), tokenizer)

    assert [text for learnt, text in cut if learnt] == [f"{answer}<|im_end|>" for answer in ANSWERS]
    rest = "".join(text for learnt, text in cut if not learnt)
    assert rest.count("<|im_start|>assistant\n") == 3
    assert not any(answer in rest for answer in ANSWERS)
    for message in example.messages:
        assert message.role == "assistant" or message.content in rest


def test_the_line_break_behind_an_answer_is_not_learnt(tokenizer: Any) -> None:
    assert pieces(row_of(conversation(), tokenizer), tokenizer)[-1] == (False, "\n")


def test_the_row_is_the_whole_rendered_conversation(tokenizer: Any) -> None:
    example = conversation()
    rendered = tokenizer.apply_chat_template([m.as_dict() for m in example.messages], tokenize=False)
    assert tokenizer.decode(row_of(example, tokenizer).tokens.tolist()) == rendered


def test_before_each_answer_stand_the_tokens_that_inference_sees(tokenizer: Any) -> None:
    example = conversation()
    row = row_of(example, tokenizer)
    checked = 0
    for index, message in enumerate(example.messages):
        if message.role == "assistant":
            before = [m.as_dict() for m in example.messages[:index]]
            prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=True)
            assert row.tokens[: len(prompt)].tolist() == list(prompt)
            assert row.supervised[len(prompt)], "the first token of the answer"
            assert not row.supervised[len(prompt) - 1]
            checked += 1
    assert checked == 3


@pytest.mark.parametrize("start", ["\n\n  lda $10", "  \n x", "é", "'s"])
def test_an_answer_cannot_merge_into_its_prompt(tokenizer: Any, start: str) -> None:
    row = row_of(example("question", start), tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "question"}], add_generation_prompt=True, tokenize=True
    )
    assert row.tokens[: len(prompt)].tolist() == list(prompt)
    assert row.supervised.tolist().index(True) == len(prompt)


def test_an_answer_that_quotes_the_end_token_is_learnt_to_its_own_end(tokenizer: Any) -> None:
    cut = pieces(row_of(example("question", "it ends with <|im_end|> and goes on"), tokenizer), tokenizer)
    assert [text for learnt, text in cut if learnt] == ["it ends with <|im_end|> and goes on<|im_end|>"]


def test_an_answer_that_stands_in_the_question_too_is_masked_there(tokenizer: Any) -> None:
    cut = pieces(row_of(example("say stz $10", "stz $10"), tokenizer), tokenizer)
    assert [text for learnt, text in cut if learnt] == ["stz $10<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    class Forgetful:
        eos_token_id, eos_token_ids, name_or_path = 0, {0}, "forgetful-base"

        def apply_chat_template(
            self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
        ) -> str:
            shown = messages[-2:]  # what came earlier is gone
            return "".join(f"<{m['role']}>{m['content']}" for m in shown) + "<assistant>" * add_generation_prompt

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [ord(letter) for letter in text]

    with pytest.raises(AfsError, match="rewrites earlier turns") as caught:
        row_of(example("a", "b", "c", "d"), Forgetful())
    assert caught.value.where == "forgetful-base"


def test_rows_over_the_limit_are_listed_by_number_and_length(tokenizer: Any) -> None:
    short, long = example("q", "a"), example("q " * 90, "a")
    limit = len(row_of(short, tokenizer).tokens)
    length = len(row_of(long, tokenizer).tokens)
    with pytest.raises(AfsError) as caught:
        tokenise([short, long, short, long], tokenizer, Recipe(max_seq_tokens=limit), "rows.jsonl")
    text = str(caught.value)
    assert f"row 2: {length} tokens" in text
    assert f"row 4: {length} tokens" in text
    assert "row 1" not in text
    assert "row 3" not in text
    assert f"max_seq_tokens = {limit}" in text
    assert caught.value.where == "rows.jsonl"
    assert "over_long=drop" in caught.value.fix


def test_rows_over_the_limit_are_dropped_and_counted(tokenizer: Any) -> None:
    short, long = example("q", "a"), example("q " * 90, "a")
    limit = len(row_of(short, tokenizer).tokens)  # a row as long as the limit stays
    kept = tokenise([long, short, long], tokenizer, Recipe(max_seq_tokens=limit, over_long="drop"), "rows")
    assert (len(kept.rows), kept.dropped) == (1, 2)
    assert kept.supervised_tokens == row_of(short, tokenizer).supervised_tokens


def test_dropping_every_row_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(AfsError, match=r"no row is left: all 2 .* max_seq_tokens = 8") as caught:
        tokenise([example("q", "a")] * 2, tokenizer, Recipe(max_seq_tokens=8, over_long="drop"), "rows")
    assert "max_seq_tokens" in caught.value.fix


# Truncating: prompts lose their start, answers nothing


def learnt(row: Row) -> list[int]:
    tokens: list[int] = row.tokens[row.supervised].tolist()
    return tokens


def truncated(rows: list[Example], tokenizer: Any, limit: int) -> list[Row]:
    """The rows under the policy, beside one that is short enough."""
    short = example("q", "a", system="s")
    kept = tokenise([short, *rows], tokenizer, Recipe(max_seq_tokens=limit, over_long="truncate"), "rows")
    assert kept.truncated == len(rows)
    assert kept.dropped == 0
    return kept.rows[1:]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_truncated_row_ends_as_the_whole_one_does(tokenizer: Any, cut: int) -> None:
    long = example("a question with many words " * 20, ANSWERS[0], system="You are Din.")
    whole = row_of(long, tokenizer)
    (row,) = truncated([long], tokenizer, len(whole.tokens) - cut)
    assert row.tokens.tolist() == whole.tokens[cut:].tolist()
    assert row.weights.tolist() == whole.weights[cut:].tolist()
    assert learnt(row) == learnt(whole)


def test_earlier_questions_go_before_later_ones_and_answers_stay(tokenizer: Any) -> None:
    first, second, _ = ANSWERS
    long = example("early " * 60, first, "late " * 60, second, system="system text " * 20)
    whole = row_of(long, tokenizer)
    limit = whole.supervised_tokens + 50
    (row,) = truncated([long], tokenizer, limit)
    assert len(row.tokens) == limit
    assert learnt(row) == learnt(whole)
    cut = pieces(row, tokenizer)
    opening = "<|im_start|>assistant\n"
    assert cut[0] == (False, opening), "all of the first prompt is gone but the opening of its answer"
    assert cut[1] == (True, f"{first}<|im_end|>")
    assert cut[2][1].endswith(f" late <|im_end|>\n{opening}")
    assert "early" not in tokenizer.decode(row.tokens.tolist())
    assert cut[3] == (True, f"{second}<|im_end|>")


def test_a_row_whose_answers_alone_do_not_fit_is_dropped(tokenizer: Any) -> None:
    long = example("q " * 40, "a " * 60)
    whole = row_of(long, tokenizer)
    opening = len(tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False))
    least = whole.supervised_tokens + opening
    (row,) = truncated([long], tokenizer, least)
    assert learnt(row) == learnt(whole)
    rows = [example("q", "a"), long]
    kept = tokenise(rows, tokenizer, Recipe(max_seq_tokens=least - 1, over_long="truncate"), "rows")
    assert (len(kept.rows), kept.dropped, kept.truncated) == (1, 1, 0)


def test_when_no_row_is_left_the_error_counts_them(tokenizer: Any) -> None:
    rows = [example("q " * 40, "a " * 50), example("q", "a " * 60)]
    with pytest.raises(AfsError, match=r"no row is left: all 2 were dropped as longer than max_seq_tokens = 20"):
        tokenise(rows, tokenizer, Recipe(max_seq_tokens=20, over_long="truncate"), "rows")


def test_rows_are_found_again_among_the_examples(tokenizer: Any) -> None:
    rows = [example("q", "a " * 60), example("q", "a"), example("q " * 40, "a")]
    kept = tokenise(rows, tokenizer, Recipe(max_seq_tokens=24, over_long="truncate"), "rows")
    assert (kept.numbers, kept.dropped, kept.truncated) == ((1, 2), 1, 2)


def test_a_beginning_that_the_model_needs_stays() -> None:
    class WithStart:
        eos_token_id, eos_token_ids, bos_token_id = 1, {1}, 0

        def apply_chat_template(
            self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
        ) -> str:
            return "^" + "".join(f"{m['role'][0]}{m['content']}$" for m in messages) + "a" * add_generation_prompt

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [{"^": 0, "$": 1}.get(letter, ord(letter)) for letter in text]

    rows = [example("q", "x"), example("0123456789", "answer")]
    kept = tokenise(rows, WithStart(), Recipe(max_seq_tokens=12, over_long="truncate"), "rows")
    assert kept.rows[1].tokens.tolist() == [0, *map(ord, "89"), 1, ord("a"), *map(ord, "answer"), 1]


# Weights


def weighted(*weights: float | None) -> Example:
    turns = [
        message
        for number, weight in enumerate(weights)
        for message in (
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": ANSWERS[number], **({} if weight is None else {"weight": weight})},
        )
    ]
    return Example.model_validate(json.loads(json.dumps({"messages": turns})))


def test_each_answer_bears_its_weight(tokenizer: Any) -> None:
    plain, row = (row_of(weighted(*weights), tokenizer) for weights in ((None, None, None), (0.25, 0, None)))
    assert row.tokens.tolist() == plain.tokens.tolist()
    found = [
        (weight, tokenizer.decode([token for _, token in run]))
        for weight, run in groupby(
            zip(row.weights.tolist(), row.tokens.tolist(), strict=True), key=lambda pair: pair[0]
        )
    ]
    ends = [f"{answer}<|im_end|>" for answer in ANSWERS]
    assert [pair for pair in found if pair[0] > 0] == [(0.25, ends[0]), (1.0, ends[2])]
    assert ends[1] in found[2][1]
    assert row.weights.dtype == np.float32
    assert plain.supervised_tokens > row.supervised_tokens == int((row.weights > 0).sum())
    assert set(plain.weights.tolist()) == {0.0, 1.0}


def test_an_answer_without_weight_is_context_that_truncation_may_cut(tokenizer: Any) -> None:
    long = weighted(0, 1)
    whole = row_of(long, tokenizer)
    first_turn = len(row_of(example("question 0", ANSWERS[0]), tokenizer).tokens)
    (row,) = truncated([long], tokenizer, len(whole.tokens) - first_turn)
    assert row.tokens.tolist() == whole.tokens[first_turn:].tolist()
    assert learnt(row) == learnt(whole)


def test_rows_with_nothing_to_learn_are_named(tokenizer: Any) -> None:
    """An example refuses such a row too; here it is made past that check."""
    silent = example("q", "a")
    silent = silent.model_copy(
        update={"messages": (silent.messages[0], Message(role="assistant", content="a", weight=0))}
    )
    with pytest.raises(
        AfsError, match=r"rows have nothing to learn \(2 problems\)\n  row 2: every answer weighs 0\n  row 3"
    ):
        tokenise([example("q", "a"), silent, silent], tokenizer, Recipe(), "rows.jsonl")


def test_a_mask_is_a_row_of_weights_of_one() -> None:
    row = Row(np.arange(3, dtype=np.int32), np.array([False, True, True]))
    assert row.weights.tolist() == [0.0, 1.0, 1.0]
    assert row.supervised.tolist() == [False, True, True]
    assert row.supervised_tokens == 2
