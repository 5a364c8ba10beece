"""What llama.cpp makes of text: token ids, the rendered chat template, and where generation ends."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer

from afs_mlx.engine.gguf.verification.conversations import CONVERSATIONS, Conversation
from afs_mlx.engine.gguf.verification.corpus import corpus
from afs_mlx.engine.gguf.verification.llama import Llama, LlamaError
from afs_mlx.schema.verification import Check

SHOWN = 5
SHOWN_CHARACTERS = 60

NOT_NORMALISED = "text that is not NFC: the tokenizer normalises it first, llama.cpp does not"


def check_tokens(llama: Llama, folder: Path, count: int) -> Check:
    """The same ids for every string of the corpus, special tokens parsed and those of the tokenizer's own added."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = corpus([token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())], count)
    wrong = []
    for text in texts:
        expected = tokenizer.encode(text).ids
        found = llama.post("/tokenize", {"content": text, "parse_special": True, "add_special": True})["tokens"]
        if found != expected:
            at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
            where = f"token {at}" if at is not None else f"{len(found)} instead of {len(expected)} tokens"
            wrong.append(f"{_short(text)} ({where})")
    check = _check("tokens", wrong, len(texts), "strings", {"characters": sum(map(len, texts))})
    return check.model_copy(update={"differences": (NOT_NORMALISED,)}) if tokenizer.normalizer is not None else check


def check_template(llama: Llama, tokenizer: TokenizerWrapper) -> Check:
    """The same prompt for every conversation as transformers renders it; what neither renders is equal, too."""
    if not tokenizer.chat_template:
        return Check(name="chat template", status="not run", reason="the model has no chat template")
    wrong, refused = [], 0
    for conversation in CONVERSATIONS:
        expected, found = _expected(tokenizer, conversation), _rendered(llama, conversation)
        if expected is None and found is None:
            refused += 1
        elif expected != found:
            wrong.append(f"{conversation.name}: {_first_difference(expected, found)}")
    return _check("chat template", wrong, len(CONVERSATIONS), "conversations", {"refused by both": refused})


def check_ends(llama: Llama, end_ids: Sequence[int]) -> Check:
    """Generation stops at every token that mlx stops at: each is forced to come next, and must be the last."""
    wrong = []
    for number in end_ids:
        body = {"prompt": "a", "n_predict": 2, "temperature": 0, "logit_bias": [[number, 1000]], "cache_prompt": False}
        answer = llama.post("/completion", body)
        if answer.get("stop_type") != "eos":
            wrong.append(f"generation goes on after token {number}")
    return _check("end tokens", wrong, len(end_ids), "tokens", {})


def _check(name: str, wrong: list[str], count: int, unit: str, figures: Mapping[str, float | int | str]) -> Check:
    figures = {unit: count, "different": len(wrong), **figures}
    if not wrong:
        return Check(name=name, status="passed", figures=dict(figures))
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    reason = f"{len(wrong)} of {count} {unit} differ: {'; '.join(wrong[:SHOWN])}{more}"
    return Check(name=name, status="failed", reason=reason, figures=dict(figures))


def _expected(tokenizer: TokenizerWrapper, conversation: Conversation) -> str | None:
    """None where the template refuses the conversation."""
    try:
        return str(
            tokenizer.apply_chat_template(
                list(conversation.messages),
                tools=list(conversation.tools) or None,
                add_generation_prompt=conversation.opens_answer,
                tokenize=False,
            )
        )
    except TemplateError:
        return None


def _rendered(llama: Llama, conversation: Conversation) -> str | None:
    body: dict[str, Any] = {
        "messages": [_in_openai_form(turn) for turn in conversation.messages],
        "add_generation_prompt": conversation.opens_answer,
    }
    if conversation.tools:
        body["tools"] = list(conversation.tools)
    try:
        return str(llama.post("/apply-template", body)["prompt"])
    except LlamaError as error:
        if "refused" not in str(error):
            raise
        return None


def _in_openai_form(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON text, which is how they travel over HTTP."""
    if "tool_calls" not in turn:
        return dict(turn)
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _first_difference(expected: str | None, found: str | None) -> str:
    if expected is None or found is None:
        return "only transformers renders it" if found is None else "only llama.cpp renders it"
    at = next((n for n, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(expected), len(found)) if at is None else at
    return f"{_short(expected[at:])} expected, {_short(found[at:])} found at character {at}"


def _short(text: str) -> str:
    return ascii(text[:SHOWN_CHARACTERS]) + ("…" if len(text) > SHOWN_CHARACTERS else "")
