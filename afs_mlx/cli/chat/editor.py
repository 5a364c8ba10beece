"""The line editor: history, completion, and when Enter ends a question. Knows no models."""

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from afs_mlx.cli.render.console import plain
from afs_mlx.core.paths import state_folder

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

LONGEST_KEPT = 64_000  # characters; a pasted file is no line to come back to

type Words = Callable[[str], dict[str, str]]  # what may follow a command → a few words about each


def editor(commands: Iterable[str], words: Words) -> "PromptSession[str]":
    """A prompt with history on disk; `words` gives what completes a command."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.output import create_output

    known = tuple(commands)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            typed = document.text_before_cursor
            word, space, rest = typed.partition(" ")
            found = words(word) if space else dict.fromkeys(known, "")
            if not typed.startswith("/") or "\n" in typed:
                return
            start = rest if space else word
            for text, about in found.items():
                if text.startswith(start):
                    yield Completion(text, -len(start), display_meta=plain(about))

    # Answers go to stdout: where that is a file, the prompt is not part of it.
    elsewhere = not sys.stdout.isatty() and sys.stderr.isatty()
    return PromptSession(
        history=_history(),
        completer=Commands(),
        complete_while_typing=False,
        key_bindings=_keys(),
        enable_open_in_editor=True,
        tempfile_suffix=".md",
        output=create_output(stdout=sys.stderr) if elsewhere else None,
    )


def is_open(text: str) -> bool:
    """Whether a question goes on in the next line: a trailing backslash, or a fence that is not closed."""
    return text.endswith("\\") or sum(line.lstrip().startswith("```") for line in text.split("\n")) % 2 == 1


def _keys() -> "KeyBindings":
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def goes_on() -> bool:
        buffer = get_app().current_buffer
        return buffer.document.is_cursor_at_the_end and is_open(buffer.text)

    @keys.add("escape", "enter")
    def _newline(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=Condition(goes_on))
    def _next_line(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
        buffer.insert_text("\n")

    return keys


def _history() -> "History":
    """The lines of earlier conversations; where they cannot be kept, those of this one."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            if len(string) <= LONGEST_KEPT:
                super().store_string(string)

    path = state_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)  # one that is older may be open to others
        os.close(descriptor)
    except OSError:
        return InMemoryHistory()
    return Kept(str(path))
