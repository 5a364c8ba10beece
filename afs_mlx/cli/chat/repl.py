"""The read-answer loop. Ctrl-C stops the answer, not the program; Ctrl-D leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from afs_mlx.cli.chat.view import ChatView, answer
from afs_mlx.cli.render.console import err
from afs_mlx.core.errors import AfsError, UsageError, closest
from afs_mlx.core.files import write_text
from afs_mlx.core.paths import cache_folder
from afs_mlx.pipelines.chat import ChatSession

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

HELP = """\
/expert [NAME]   switch to an expert, or to auto; without a name, say who answers
/why             why the router chose this expert
/retry           ask the last question again
/edit            change the last question and ask it again
/system [TEXT]   answer under another system text; without a text, back to the expert's
/save FILE       write the conversation as Markdown
/stats           tokens and speed of the last answer
/clear           forget the conversation
/help            this list
/quit            leave (also Ctrl-D)
Alt-Enter makes a new line; Ctrl-C stops the answer."""
COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))


class Repl:
    """A conversation with its slash commands."""

    def __init__(self, session: ChatSession, view: ChatView, ask: Callable[[str], str]) -> None:
        self._session, self._view, self._ask = session, view, ask
        self.commands: dict[str, Callable[[str], None]] = {
            "/expert": self._expert,
            "/why": self._why,
            "/retry": self._retry,
            "/edit": self._edit,
            "/system": self._system,
            "/save": self._save,
            "/stats": self._stats,
            "/clear": self._clear,
            "/help": lambda _: self._say(HELP),
        }

    @property
    def prompt(self) -> str:
        """Who is asked next, `din (demo)> ` on the embedded base."""
        name = "auto" if self._session.automatic else (self._session.expert.name if self._session.expert else "auto")
        return f"{name}{' (demo)' if self._session.demo else ''}> "

    def handle(self, line: str) -> bool:
        """One line; returns False when the person leaves. An error or Ctrl-C ends the answer, not the conversation."""
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return False
        try:
            if word.startswith("/"):
                command = self.commands.get(word)
                if command is None:
                    raise UsageError(f"there is no {word}", "", closest(word, list(COMMANDS)))
                command(rest.strip())
            elif line.strip():
                answer(self._session, line.strip())
        except AfsError as error:
            err().print(f"error: {error}", style="red", markup=False)
        except BrokenPipeError:  # whoever read the answers left
            raise
        except OSError as error:
            problem = AfsError(error.strerror or str(error), str(error.filename or ""))
            err().print(f"error: {problem}", style="red", markup=False)
        except (KeyboardInterrupt, EOFError):
            self._say("stopped")
        return True

    def _expert(self, name: str) -> None:
        if name:
            self._session.switch(name)
        current = self._session.expert.label if self._session.expert else "nobody yet"
        self._say("auto: the router chooses for each question" if self._session.automatic else f"{current} answers")

    def _why(self, _: str) -> None:
        routed = self._view.route
        if not self._session.automatic or routed is None:
            self._say("the expert was named, not routed" if not self._session.automatic else "nothing was routed yet")
            return
        scores = ", ".join(f"{name} {score}" for name, score in routed.route.scores.items()) or "none"
        self._say(f"{routed.route.expert}: {routed.route.reason}; keyword hits: {scores}")

    def _retry(self, _: str) -> None:
        self._again("/retry", lambda question: question)

    def _edit(self, _: str) -> None:
        self._again("/edit", lambda question: self._ask(question).strip())

    def _again(self, command: str, changed: Callable[[str], str]) -> None:
        """Ask the last question again; the exchange is kept until a new answer has begun."""
        kept = self._session.messages
        if len(kept) < 2:
            raise UsageError("there is nothing to ask again", command, "ask something first")
        question = changed(kept[-2].content)
        if not question:
            return
        self._session.take_back()
        taken_back = self._session.messages
        try:
            answer(self._session, question)
        finally:
            if self._session.messages == taken_back:
                self._session.messages = kept

    def _system(self, text: str) -> None:
        self._session.use_system(text or None)
        self._say("system text replaced" if text else "the expert's own system text holds")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("a file is needed", "/save", "/save talk.md")
        try:
            path = Path(name).expanduser()
            taken = path.exists()
            if "\0" in name:
                raise ValueError("a zero byte in its name")
        except (OSError, RuntimeError, ValueError) as error:  # too long, no such ~user, a zero byte
            raise UsageError(f"this file cannot be: {error}", "/save", "/save talk.md") from error
        if taken:
            raise UsageError("the file exists already", name, "name another file")
        turns = [f"**{message.role}**\n\n{message.content}\n" for message in self._session.messages]
        write_text(path, "\n".join(turns))
        self._say(f"saved {path}")

    def _stats(self, _: str) -> None:
        usage = self._session.usage
        if usage is None:
            self._say("nothing was answered yet")
            return
        self._say(
            f"{usage.prompt_tokens} prompt tokens, {usage.answer_tokens} answer tokens, "
            f"{usage.tokens_per_s:.1f} tokens/s, first token after {usage.first_token_s:.2f} s, ended by {usage.finish}"
        )

    def _clear(self, _: str) -> None:
        self._session.clear()
        self._say("cleared")

    def _say(self, text: str) -> None:
        err().print(text, style="dim", markup=False)


def converse(session: ChatSession, view: ChatView) -> None:
    """Read lines until the person leaves."""
    prompts = _prompt_session(session)
    repl = Repl(session, view, lambda text: prompts.prompt(repl.prompt, default=text))
    err().print("Type a question; /help lists the commands, Ctrl-D leaves.", style="dim")
    while True:
        try:
            line = prompts.prompt(repl.prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if not repl.handle(line):
            return


def _prompt_session(session: ChatSession) -> "PromptSession[str]":
    """Line editing with a history kept in the user's cache, completion of commands and expert names."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import NestedCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    words: dict[str, dict[str, None] | None] = dict.fromkeys(COMMANDS)
    words["/expert"] = dict.fromkeys([*session.expert_names, "auto"])
    return PromptSession(
        history=_history(),
        completer=NestedCompleter.from_nested_dict(words),
        complete_while_typing=False,
        key_bindings=keys,
    )


def _history() -> "History":
    """The lines of earlier conversations; where the cache cannot be written, those of this one."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = cache_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("a+b").close()  # touch is content with a folder, and with a file that is not to be written
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
