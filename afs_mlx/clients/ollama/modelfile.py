"""Ollama's Modelfile as text: quoting and parameters. Talks to no server and reads no file.

Ollama's parser has no escapes and drops every character that it holds for unprintable, without a word. What could not
come back as it was is refused here.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence

from afs_mlx.core.errors import UsageError, closest, problems

ROLES = ("system", "user", "assistant")

# Parameter → the type that Ollama reads; `stop` is given on its own.
PARAMETERS: dict[str, type[int] | type[float]] = {
    "num_ctx": int,
    "num_predict": int,
    "num_keep": int,
    "num_batch": int,
    "num_gpu": int,
    "num_thread": int,
    "main_gpu": int,
    "seed": int,
    "top_k": int,
    "repeat_last_n": int,
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}


def render_modelfile(
    gguf: str,
    *,
    system: str,
    stop: Sequence[str],
    template: str,
    parameters: Mapping[str, float | int],
    messages: Sequence[tuple[str, str]] = (),
    license_text: str = "",
) -> str:
    """The text of a Modelfile that Ollama reads back as exactly these values.

    `messages` are (role, text), few-shot examples before the conversation. An empty `system` or `license_text` gives no
    line. Raises AfsError listing every value that the format cannot hold, UsageError for an unknown parameter.
    """
    found: list[str] = []
    lines = [f"FROM {_quoted('FROM', gguf, found)}", f"TEMPLATE {_quoted('TEMPLATE', template, found)}"]
    if not gguf.strip():
        found.append("FROM: names no file")
    if system:
        lines.append(f"SYSTEM {_quoted('SYSTEM', system, found)}")
    lines += [f"PARAMETER {name} {_number(name, value, found)}" for name, value in parameters.items()]
    for text in stop:
        if not text:
            found.append("PARAMETER stop: an empty text would stop every answer")
        lines.append(f"PARAMETER stop {_quoted('PARAMETER stop', text, found)}")
    for number, (role, text) in enumerate(messages, 1):
        if role not in ROLES:
            found.append(f"MESSAGE {number}: role {role!r}, known: {', '.join(ROLES)}")
        lines.append(f"MESSAGE {role} {_quoted(f'MESSAGE {number}', text, found)}")
    if license_text:
        lines.append(f"LICENSE {_quoted('LICENSE', license_text, found)}")
    if found:
        raise problems(
            found,
            "a Modelfile cannot hold this",
            "Modelfile",
            "remove the characters, or create the model through a running Ollama, whose API takes any text",
        )
    return "\n".join(lines) + "\n"


def _quoted(command: str, text: str, found: list[str]) -> str:
    """The text in quotes that end where they should; adds to `found` what the parser would change."""
    if '"""' in text:
        found.append(f'{command}: contains """, which ends a value')
    if dropped := sorted({character for character in text if not _is_kept(character)}):
        names = ", ".join(f"U+{ord(character):04X} {unicodedata.name(character, 'control')}" for character in dropped)
        line = 1 + text[: min(map(text.index, dropped))].count("\n")
        found.append(f"{command}: line {line}: characters that Ollama drops: {names}")
    # Single quotes would do for most, but a quote before a line end would then end the value.
    return f'"{text}"' if '"' not in text and "\n" not in text else f'"""{text}"""'


def _is_kept(character: str) -> bool:
    """Whether Ollama's parser keeps it: Go's IsPrint is Python's isprintable, and white space of a line is kept."""
    return character.isprintable() or character in "\n\r\t"


def _number(name: str, value: float | int, found: list[str]) -> str:
    """A parameter as Ollama reads it; whole numbers must not have a fraction, not even .0."""
    kind = PARAMETERS.get(name)
    if kind is None:
        raise UsageError(f"Ollama has no parameter {name!r}", "parameters", closest(name, list(PARAMETERS)))
    if isinstance(value, bool) or not math.isfinite(value):
        found.append(f"PARAMETER {name}: {value!r} is not a number")
        return ""
    if kind is int and value != int(value):
        found.append(f"PARAMETER {name}: {value!r} is not a whole number")
    return str(int(value)) if kind is int else repr(float(value))
