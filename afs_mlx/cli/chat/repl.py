"""The read-answer loop. Ctrl-C stops the answer, not the program; Ctrl-D leaves."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from afs_mlx.cli.chat.editor import editor
from afs_mlx.cli.chat.quiet import quiet_background
from afs_mlx.cli.chat.view import ready_line, say, show
from afs_mlx.core.errors import AfsError, UsageError, closest
from afs_mlx.core.files import write_text
from afs_mlx.pipelines.chat import AUTO, ChatSession
from afs_mlx.pipelines.chat.saved import SavedSessions

HELP = """\
/expert [NAME]   switch to an expert, or to auto; without a name, say who answers
/why             why the router chose this expert
/system [TEXT]   answer under another system text; without a text, back to the expert's
/retry           ask the last question again
/edit            change the last question and ask it again
/save [NAME]     save the conversation; NAME.md writes Markdown to that file
/load NAME       continue a saved conversation
/stats           tokens and speed of the last answer, and what is in memory
/clear           forget the conversation
/help            this list
/quit            leave (also Ctrl-D)
Esc Enter, a \\ at the end or an open ``` go on in a new line; Tab completes; Ctrl-X Ctrl-E opens $EDITOR.
Ctrl-C stops the answer, or drops the line."""
COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))
_COMMAND = re.compile(r"(/[A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)


class Repl:
    """A conversation with its slash commands. `edit` hands a text to the line editor and gives what became of it."""

    def __init__(self, session: ChatSession, edit: Callable[[str], str], name: str = "") -> None:
        self._session, self._edit_line = session, edit
        self._saved = SavedSessions()
        self._name = name  # of the saved conversation that this one is
        self._keeps = bool(name)
        self.commands: dict[str, Callable[[str], None]] = {
            "/expert": self._expert,
            "/why": self._why,
            "/system": self._system,
            "/retry": self._retry,
            "/edit": self._edit,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/clear": self._clear,
            "/help": lambda _: say(HELP),
        }

    @property
    def prompt(self) -> str:
        """Who is asked next, `din (demo)> ` on the embedded base."""
        expert = self._session.expert
        name = AUTO if self._session.automatic or expert is None else expert.name
        return f"{name}{' (demo)' if self._session.demo else ''}> "

    def words(self, command: str) -> dict[str, str]:
        """What may follow a command, with a few words about each."""
        if command == "/expert":
            return {**self._session.titles, AUTO: "the router chooses for each question"}
        return dict.fromkeys(self._saved.names(), "") if command in ("/load", "/save") else {}

    def handle(self, line: str) -> bool:
        """One line; returns False when the person leaves. An error or Ctrl-C ends the answer, not the conversation."""
        found = _COMMAND.fullmatch(line.strip())  # `/* a comment */` is a question
        word = found[1] if found else ""
        if word in ("/quit", "/exit"):
            return False
        try:
            if found:
                command = self.commands.get(word)
                if command is None:
                    raise UsageError(f"there is no {word}", "", closest(word, list(COMMANDS)))
                command((found[2] or "").strip())
            elif line.strip():
                self._answer(self._session.ask(line.strip()))
        except AfsError as error:
            self._fail(error)
        except BrokenPipeError:  # whoever read the answers left
            raise
        except OSError as error:
            self._fail(AfsError(error.strerror or str(error), str(error.filename or "")))
        except (KeyboardInterrupt, EOFError):
            say("stopped")
        return True

    def _answer(self, pieces: Iterator[str]) -> None:
        try:
            show(pieces)
        finally:
            if self._keeps and self._session.messages:
                self._saved.save(self._name, self._session.snapshot())

    def _expert(self, name: str) -> None:
        if name:
            self._session.switch(name)
        if self._session.automatic:
            say("auto: the router chooses for each question")
        if self._session.expert is not None:
            say(f"{self._session.expert.label} {'answered last' if self._session.automatic else 'answers'}")
        if not name:
            for known, title in self._session.titles.items():
                say(f"  {known:<12} {title}")

    def _why(self, _: str) -> None:
        route = self._session.route
        if not self._session.automatic or route is None:
            say("the expert was named, not routed" if not self._session.automatic else "nothing was routed yet")
            return
        from afs_mlx.cli.render.routing import why_lines

        say("\n".join([f"{route.expert}:", *why_lines(route)]))

    def _retry(self, _: str) -> None:
        self._answer(self._session.ask_again())

    def _edit(self, _: str) -> None:
        last = self._session.last_question
        if last is None:
            raise UsageError("there is nothing to edit", "/edit", "ask something first")
        question = self._edit_line(last).strip()
        if question:
            self._answer(self._session.ask_again(question))

    def _system(self, text: str) -> None:
        self._session.use_system(text or None)
        say("system text replaced" if text else "the expert's own system text holds")

    def _save(self, name: str) -> None:
        name = name or self._name
        if not name:
            raise UsageError("a name is needed", "/save", "/save zelda, or /save talk.md for Markdown")
        if name.endswith(".md"):
            self._write_markdown(name)
            return
        if name != self._name and self._saved.has(name):
            raise UsageError("there is a conversation of that name", name, "take another name, or /load it first")
        path = self._saved.save(name, self._session.snapshot())
        self._name = name
        say(f"saved as {name} ({path}); /load {name} continues it")

    def _write_markdown(self, name: str) -> None:
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
        say(f"saved {path}")

    def _load(self, name: str) -> None:
        if not name:
            names = ", ".join(self._saved.names()) or "none; /save NAME saves this one"
            raise UsageError("a name is needed", "/load", f"saved: {names}")
        saved = self._saved.load(name)
        self._session.restore(saved)
        self._name = name
        turns = len(saved.messages) // 2
        say(f"{name}: {turns} question{'s' if turns != 1 else ''}, saved {saved.saved_at}")
        self._expert_line()
        if saved.messages:
            say(f"last question: {_beginning(saved.messages[-2].content)}")

    def _expert_line(self) -> None:
        expert = self._session.expert
        if expert is not None:
            say(f"{expert.label} {'answered last; auto' if self._session.automatic else 'answers'}")

    def _stats(self, _: str) -> None:
        usage, ready = self._session.usage, self._session.ready
        if usage is None or ready is None:
            say("nothing was answered yet")
        else:
            say(ready_line(ready))
            say(
                f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} of them known), "
                f"{usage.answer_tokens} answer tokens, {usage.tokens_per_s:.1f} tokens/s, "
                f"first token after {usage.first_token_s:.2f} s, ended by {usage.finish}"
            )
        for line in self._session.facts():
            say(line)

    def _clear(self, _: str) -> None:
        self._session.clear()
        self._name, self._keeps = "", False  # what is saved stays as it is
        say("cleared")

    def _fail(self, error: AfsError) -> None:
        say(f"error: {error}", style="red")


def converse(session: ChatSession, name: str = "") -> None:
    """Read lines until the person leaves; `name` is the saved conversation that is kept up to date.

    Models begin to load when the first prompt is on the screen.
    """
    repl = Repl(session, lambda text: prompts.prompt(repl.prompt, default=text), name)
    prompts = editor(COMMANDS, repl.words)
    say("Type a question; /help lists the commands, Ctrl-D leaves.")

    def warm(_: object) -> None:
        prompts.app.after_render.remove_handler(warm)
        session.warm()

    prompts.app.after_render.add_handler(warm)
    with quiet_background():
        while True:
            try:
                line = prompts.prompt(repl.prompt)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not repl.handle(line):
                return


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
