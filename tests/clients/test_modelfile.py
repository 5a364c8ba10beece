"""Modelfiles and the ChatML template, held against Ollama's parser and Go's templates (golden.json)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from afs_mlx.clients.ollama.modelfile import render_modelfile
from afs_mlx.clients.ollama.templates import CHATML_TEMPLATE
from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.engine.bases.tiny_qwen2 import CHAT_TEMPLATE, DEFAULT_SYSTEM

FOLDER = Path(__file__).parents[1] / "golden" / "ollama"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
REMAKE = "remake tests/golden/ollama/golden.json with the script beside it"


def render(**changes: Any) -> str:
    arguments: dict[str, Any] = {"gguf": "./model.gguf", "system": "You are Din.", "stop": ["<|im_end|>"]}
    arguments |= {"template": "{{ .Prompt }}", "parameters": {}} | changes
    return render_modelfile(arguments.pop("gguf"), **arguments)


def test_the_plain_case_reads_well() -> None:
    assert render(parameters={"num_ctx": 4096, "temperature": 0.2}, messages=[("user", "hi\nyou")]) == (
        'FROM "./model.gguf"\n'
        'TEMPLATE "{{ .Prompt }}"\n'
        'SYSTEM "You are Din."\n'
        "PARAMETER num_ctx 4096\n"
        "PARAMETER temperature 0.2\n"
        'PARAMETER stop "<|im_end|>"\n'
        'MESSAGE user """hi\nyou"""\n'
    )


@pytest.mark.parametrize("golden", GOLDEN["modelfiles"], ids=lambda golden: repr(golden["arguments"]["system"]))
def test_ollama_reads_back_what_was_given(golden: dict[str, Any]) -> None:
    given = dict(golden["arguments"])
    text = render_modelfile(given.pop("gguf"), template=CHATML_TEMPLATE, **given)
    assert hashlib.sha256(text.encode()).hexdigest() == golden["text_sha256"], REMAKE
    expected = [["model", "./my model.gguf"], ["template", "CHATML"]]
    expected += [["system", given["system"]]] if given["system"] else []
    expected += [["num_ctx", "4096"], ["temperature", "0.2"], ["top_p", "1.0"]]
    expected += [["stop", stop] for stop in given["stop"]]
    expected += [["message", f"{role}: {text}"] for role, text in given["messages"]]
    expected += [["license", given["license_text"]]] if given["license_text"] else []
    assert golden["commands"] == expected


def qwen_jinja(messages: list[dict[str, Any]]) -> str:
    """The tiny base's template, which renders as Qwen2.5's."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, tools=None, add_generation_prompt=True)


def test_the_golden_file_is_of_this_template() -> None:
    assert hashlib.sha256(CHATML_TEMPLATE.encode()).hexdigest() == GOLDEN["template_sha256"], REMAKE


@pytest.mark.parametrize("chat", [chat for chat in GOLDEN["chats"] if "tools" not in chat])
def test_the_template_renders_as_qwen_does(chat: dict[str, Any]) -> None:
    expected = qwen_jinja(chat["messages"])
    if chat["messages"][0]["role"] != "system":
        made_up = f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
        assert expected.startswith(made_up)
        expected = expected.removeprefix(made_up)
    if chat["messages"][-1]["role"] == "assistant":  # stays open, to be continued
        expected = expected.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    assert chat["rendered"] == expected


def test_the_template_with_tools() -> None:
    (chat,) = [chat for chat in GOLDEN["chats"] if "tools" in chat]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    expected = environment.from_string(CHAT_TEMPLATE).render(**chat, add_generation_prompt=True)
    # Go writes JSON without spaces and sorts its keys; all else is the same text.
    spaced = ('{"function": {"name": "asm", "parameters": {"type": "object"}}, "type": "function"}', '{"code": "NOP"}')
    for text in spaced:
        assert text in expected
        expected = expected.replace(text, json.dumps(json.loads(text), separators=(",", ":")))
    assert chat["rendered"] == expected


def test_a_single_prompt() -> None:
    for golden in GOLDEN["prompts"]:
        system = golden["values"].get("System")
        before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        expected = f"{before}<|im_start|>user\n{golden['values']['Prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert golden["rendered"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": 'a """ b'}, 'SYSTEM: contains """'),
        ({"template": '"""'}, 'TEMPLATE: contains """'),
        ({"system": "one\ntwo\x1b[0m"}, "SYSTEM: line 2: characters that Ollama drops: U+001B control"),
        ({"system": "no\u00a0break"}, "U+00A0 NO-BREAK SPACE"),
        ({"messages": [("user", "zero\u200bwidth")]}, "MESSAGE 1: line 1: characters that Ollama drops: U+200B"),
        ({"license_text": "form\ffeed"}, "LICENSE: line 1: characters that Ollama drops: U+000C"),
        ({"messages": [("tool", "x")]}, "MESSAGE 1: role 'tool', known: system, user, assistant"),
        ({"stop": [""]}, "an empty text would stop every answer"),
        ({"parameters": {"temperature": float("nan")}}, "PARAMETER temperature: nan is not a number"),
        ({"parameters": {"num_ctx": 4096.5}}, "PARAMETER num_ctx: 4096.5 is not a whole number"),
        ({"parameters": {"num_ctx": True}}, "PARAMETER num_ctx: True is not a number"),
        ({"gguf": " "}, "FROM: names no file"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AfsError) as caught:
        render(**changes)
    assert message in str(caught.value)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(AfsError, match="3 problems") as caught:
        render(system="a\x00", stop=["\x07"], messages=[("bot", "x")])
    for part in ("SYSTEM", "PARAMETER stop", "MESSAGE 1"):
        assert part in str(caught.value)


def test_whole_numbers_have_no_fraction() -> None:
    text = render(parameters={"num_ctx": 4096.0, "temperature": 0})
    assert "PARAMETER num_ctx 4096\n" in text
    assert "PARAMETER temperature 0.0\n" in text


def test_an_unknown_parameter_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no parameter 'temprature'") as caught:
        render(parameters={"temprature": 1})
    assert "did you mean 'temperature'?" in str(caught.value)
