"""Whether a server holds what it was given: /api/show against our content."""

import ast
import re

from afs_mlx.clients.ollama.content import ModelfileContent
from afs_mlx.clients.ollama.server import Shown

OWN_TEMPLATE = (
    "this Ollama renders with the GGUF's own chat template, not with our TEMPLATE; set OLLAMA_GO_TEMPLATE=true for the "
    "server to change that"
)


def differences(content: ModelfileContent, shown: Shown) -> list[str]:
    """What came back otherwise, one line each; empty where all is as given."""
    found = []
    if shown.template != content.template and not uses_own_template(shown):
        found.append("the template came back changed")
    if shown.system != content.system:
        found.append("the system text came back changed")
    if shown.license != content.license_text:
        found.append("the licence came back changed")
    messages = tuple((turn.role, turn.content) for turn in shown.messages)
    if messages != content.messages:
        found.append(f"{len(content.messages)} messages were given, {len(messages)} came back or came back changed")
    numbers, stops = parameters(shown.parameters)
    found += [
        f"parameter {name}: {value} was given, {numbers.get(name, 'none')} came back"
        for name, value in content.parameters.items()
        if numbers.get(name) != value
    ]
    found += [f"stop text {text!r} did not come back" for text in content.stop if text not in stops]
    found += [f"stop text {text!r} was not given" for text in stops if text not in content.stop]
    return found


def uses_own_template(shown: Shown) -> bool:
    """Newer servers prefer the GGUF's Jinja template where it can do more than ours, and then show that one."""
    return "{%" in shown.template


def parameters(text: str) -> tuple[dict[str, float], list[str]]:
    """Numbers by name and the stop texts, from lines that Go's `%-30s %#v` wrote: texts are quoted as in Go."""
    numbers: dict[str, float] = {}
    stops: list[str] = []
    for line in text.split("\n"):
        name, _, value = re.sub(r"\s+", " ", line.strip(), count=1).partition(" ")
        if name == "stop":
            stops.append(_unquoted(value))
            continue
        try:
            numbers[name] = float(value)
        except ValueError:
            continue  # a text or truth value, of which we set none
    return numbers, stops


def _unquoted(value: str) -> str:
    """A Go string literal; its escapes are those of Python."""
    try:
        text = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return text if isinstance(text, str) else value
