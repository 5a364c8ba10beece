"""Which tokens are learnt: the answers and the token that ends them, cut where inference cuts."""

from itertools import groupby
from pathlib import Path
from typing import Any

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
    with pytest.raises(AfsError, match=r"no row is left: all 2 were dropped"):
        tokenise([example("q", "a")] * 2, tokenizer, Recipe(max_seq_tokens=8, over_long="drop"), "rows")
