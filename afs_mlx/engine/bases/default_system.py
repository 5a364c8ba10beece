"""The system text that a chat template makes up where a conversation has none. Reads files only."""

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from afs_mlx.engine.bases.chat_format import ChatFormat, chat_format, chat_template

PROBE = "7d1f4b"
TURNS: dict[ChatFormat, tuple[str, str]] = {
    "chatml": ("<|im_start|>system\n", "<|im_end|>\n"),
    "llama3": ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
}
# What a template that does not fit a plain conversation raises; it is data, and may do anything that Jinja can.
UNFIT = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def default_system(folder: Path) -> str:
    """Qwen2.5 and SmolLM2 name themselves; empty for a template that adds nothing, or cannot be rendered here.

    Raises AfsError for a chat format that is not known.
    """
    start, end = TURNS[chat_format(folder)]
    environment: Any = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        text: str = environment.from_string(chat_template(folder)).render(
            messages=[{"role": "user", "content": PROBE}], add_generation_prompt=True, bos_token="", eos_token=""
        )
    except UNFIT:
        return ""
    _, found, rest = text.partition(PROBE)[0].partition(start)
    return rest.partition(end)[0] if found else ""
