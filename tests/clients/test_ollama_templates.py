"""Our Go templates, rendered by Go's text/template, against the models' Jinja, rendered by transformers.

What Ollama does around a template is done here as its server does it: the model's system text goes before a
conversation without one (ChatHandler), neighbours of one role are joined (collate), and tools and arguments are Go's
JSON. Its tools are structs, so its keys stand in another order and unknown ones are left out: not shown here.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.clients.ollama.content import content_for
from afs_mlx.clients.ollama.templates import CHATML_TEMPLATE, LLAMA3_TEMPLATE
from afs_mlx.engine.bases.tiny_qwen2 import CHAT_TEMPLATE, DEFAULT_SYSTEM
from afs_mlx.engine.gguf.verification.conversations import CONVERSATIONS, PLAIN, Conversation
from afs_mlx.schema.sampling import Sampling

GoTemplateEngine = pytest.importorskip(
    "cognihub_pygotemplate", reason="Go's text/template has a wheel for Linux x86-64 and Python 3.12 alone"
).GoTemplateEngine

SMOL_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Renders as SmolLM2's template.
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n" + SMOL_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Renders as Llama 3's template but for <|begin_of_text|>, which Ollama writes itself.
LLAMA3 = (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ (message.content | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

OPEN_END = "Ollama always continues: an answer at the end stays open, a question is followed by the answer's head"
JOINED = "Ollama joins neighbours of one role with an empty line"
EMPTY = "with tools an empty system text is none: two line ends fewer before the tools"
TRIMMED = "Llama 3's Jinja trims white space around a text, Go's templates cannot"

# Conversations that our template renders otherwise, and why; everything else must be equal to the letter.
DIFFERENT = {
    "answer last": OPEN_END,
    "answer last, system": OPEN_END,
    "answer last, trailing space": OPEN_END,
    "question last, no answer's head": OPEN_END,
    "a call last": OPEN_END,
    "two questions in a row": JOINED,
    "tools offered, empty system": EMPTY,
}
DIFFERENT_IN_LLAMA3 = {
    **DIFFERENT,
    "system, several lines": TRIMMED,
    "trailing spaces": TRIMMED,
    "only white space": TRIMMED,
    "carriage returns": TRIMMED,
    "long": TRIMMED,
}


def go_json(value: Any) -> str:
    """As Go's json.Marshal: sorted keys, no spaces, and <, >, & escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if c in "<>&\u2028\u2029" else c for c in text)


def rendered_by_go(template: str, system: str, conversation: Conversation) -> str:
    """What Ollama's server hands to the model."""
    assert template.count("json .") in (0, 2), "tools and arguments"
    engine = GoTemplateEngine(
        template.replace("json .Function.Arguments", ".Function.Arguments").replace("json .", ".")
    )
    turns = list(conversation.messages)
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    systems = [turn["content"] for turn in turns if turn["role"] == "system"]
    messages: list[dict[str, Any]] = []
    for turn in turns:
        calls = [
            {"Function": {"Name": call["function"]["name"], "Arguments": go_json(call["function"]["arguments"])}}
            for call in turn.get("tool_calls", ())
        ]
        if messages and messages[-1]["Role"] == turn["role"] != "tool":
            messages[-1]["Content"] += f"\n\n{turn['content']}"
        else:
            messages.append({"Role": turn["role"], "Content": turn["content"], "ToolCalls": calls})
    tools = [go_json(tool) for tool in conversation.tools]
    values = {"System": "\n\n".join(systems), "Messages": messages, "Tools": tools, "Response": ""}
    return str(engine.render(values))


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def rendered_by_jinja(tokenizer: Any, template: str, conversation: Conversation) -> str:
    """What mlx-lm hands to the model, its JSON as Go would write it."""
    text: str = tokenizer.apply_chat_template(
        list(conversation.messages),
        chat_template=template,
        tools=list(conversation.tools) or None,
        add_generation_prompt=conversation.opens_answer,
        tokenize=False,
    )
    values: list[Any] = list(conversation.tools)
    values += [c["function"]["arguments"] for turn in conversation.messages for c in turn.get("tool_calls", ())]
    for value in values:
        plain = json.dumps(value, ensure_ascii=False)
        assert plain in text or go_json(value) in text
        text = text.replace(plain, go_json(value))
    return text


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.name)
def test_qwen(tokenizer: Any, conversation: Conversation) -> None:
    expected = rendered_by_jinja(tokenizer, CHAT_TEMPLATE, conversation)
    found = rendered_by_go(CHATML_TEMPLATE, DEFAULT_SYSTEM, conversation)
    assert (found == expected) == (conversation.name not in DIFFERENT), DIFFERENT.get(conversation.name, found)


@pytest.mark.parametrize("conversation", PLAIN, ids=lambda conversation: conversation.name)
def test_smollm2(tokenizer: Any, conversation: Conversation) -> None:
    """Without tools, which SmolLM2's template does not know."""
    expected = rendered_by_jinja(tokenizer, SMOLLM2, conversation)
    found = rendered_by_go(CHATML_TEMPLATE, SMOL_SYSTEM, conversation)
    assert (found == expected) == (conversation.name not in DIFFERENT), DIFFERENT.get(conversation.name, found)


@pytest.mark.parametrize("conversation", PLAIN, ids=lambda conversation: conversation.name)
def test_llama3(tokenizer: Any, conversation: Conversation) -> None:
    expected = rendered_by_jinja(tokenizer, LLAMA3, conversation)
    found = rendered_by_go(LLAMA3_TEMPLATE, "", conversation)
    reason = DIFFERENT_IN_LLAMA3.get(conversation.name, "")
    assert (found == expected) == (not reason), reason or found


@pytest.mark.parametrize(("template", "system"), [(CHAT_TEMPLATE, DEFAULT_SYSTEM), (SMOLLM2, SMOL_SYSTEM)])
def test_an_answer_at_the_end_differs_in_its_end_alone(tokenizer: Any, template: str, system: str) -> None:
    for conversation in PLAIN:
        if DIFFERENT.get(conversation.name) != OPEN_END:
            continue
        expected = rendered_by_jinja(tokenizer, template, conversation)
        found = rendered_by_go(CHATML_TEMPLATE, system, conversation)
        if conversation.messages[-1]["role"] == "assistant":
            assert f"{found}<|im_end|>\n" == expected
        else:
            assert found == f"{expected}<|im_start|>assistant\n"


def test_the_corpus_is_large_enough_and_mostly_equal() -> None:
    names = {conversation.name for conversation in CONVERSATIONS}
    assert set(DIFFERENT) <= names
    assert len(names - set(DIFFERENT)) >= 30


def test_the_models_own_default_system_text_is_set() -> None:
    arguments: dict[str, Any] = {"chat_format": "chatml", "stop_texts": ["<|im_end|>"], "sampling": Sampling()}
    assert content_for(**arguments, system="", default_system=DEFAULT_SYSTEM).system == DEFAULT_SYSTEM
    assert content_for(**arguments, system="You are Din.", default_system=DEFAULT_SYSTEM).system == "You are Din."
