"""The conversation in the terminal, with the real session on the tiny base and scripted lines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from afs_mlx.cli.chat import repl as repl_module
from afs_mlx.cli.chat.repl import COMMANDS, Repl
from afs_mlx.cli.chat.view import ChatView
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.chat import ChatConfig, ChatSession
from afs_mlx.schema.message import Message

EXCHANGE = [Message(role="user", content="first"), Message(role="assistant", content="one")]


class Talk:
    """A Repl whose answers are scripted; `edited` is what /edit gets, `answers` what the model says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        workspace = Workspace.find()
        view = ChatView()
        self.session = ChatSession(ChatConfig(Catalog.load(workspace), workspace, "din"), view)
        self.answers: list[str | BaseException] = []
        self.edited: str | BaseException = ""
        self.asked: list[str] = []
        self.repl = Repl(self.session, view, self._edit)
        monkeypatch.setattr(ChatSession, "ask", lambda _, question: self._ask(question))

    def _edit(self, _: str) -> str:
        if isinstance(self.edited, BaseException):
            raise self.edited
        return self.edited

    def _ask(self, question: str) -> Iterator[str]:
        self.asked.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        kept = [*self.session.messages, Message(role="user", content=question)]
        yield answer
        self.session.messages = [*kept, Message(role="assistant", content=answer)]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(monkeypatch)


def test_every_command_of_the_help_exists(talk: Talk) -> None:
    assert set(COMMANDS) == {*talk.repl.commands, "/quit"}


def test_a_question_and_leaving(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.answers = ["  rts\x1b[31m"]
    assert talk.repl.handle("what now?")
    assert capsys.readouterr().out == "  rts[31m\n", "indentation stays, the escape character goes"
    assert not talk.repl.handle("/quit")


def test_an_unknown_command_names_the_nearest(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk.repl.handle("/retyr")
    assert "did you mean '/retry'?" in capsys.readouterr().err
    assert talk.repl.handle("/expert dim")
    assert "did you mean 'din'?" in capsys.readouterr().err
    assert talk.repl.prompt == "din> "


def test_switching(talk: Talk) -> None:
    talk.repl.handle("/expert veran")
    assert talk.repl.prompt == "veran> "
    talk.repl.handle("/expert auto")
    assert talk.repl.prompt == "auto> "


def test_retry_replaces_the_last_exchange(talk: Talk) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.answers = ["two"]
    talk.repl.handle("/retry")
    assert talk.asked == ["first"]
    assert [message.content for message in talk.session.messages] == ["first", "two"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), EOFError()])
def test_an_edit_that_is_broken_off_loses_nothing(talk: Talk, problem: BaseException) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.edited = problem
    assert talk.repl.handle("/edit")
    assert talk.session.messages == EXCHANGE


def test_an_empty_edit_loses_nothing_and_a_full_one_asks(talk: Talk) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.repl.handle("/edit")
    assert talk.session.messages == EXCHANGE
    talk.edited, talk.answers = "second", ["two"]
    talk.repl.handle("/edit")
    assert [message.content for message in talk.session.messages] == ["second", "two"]


def test_a_retry_that_fails_keeps_the_exchange(talk: Talk) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.answers = [KeyboardInterrupt()]
    assert talk.repl.handle("/retry")
    assert talk.session.messages == EXCHANGE


def test_nothing_to_retry(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.repl.handle("/retry")
    assert "there is nothing to ask again" in capsys.readouterr().err


def test_save_writes_once(talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk.session.messages = list(EXCHANGE)
    path = tmp_path / "talk.md"
    talk.repl.handle(f"/save {path}")
    assert path.read_text() == "**user**\n\nfirst\n\n**assistant**\n\none\n"
    talk.repl.handle(f"/save {path}")
    assert "the file exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["~nobody-of-that-name/talk.md", "x" * 300, "a\0b"])
def test_save_under_an_impossible_name(talk: Talk, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    talk.session.messages = list(EXCHANGE)
    assert talk.repl.handle(f"/save {name}"), "the conversation goes on"
    assert "this file cannot be" in capsys.readouterr().err
    assert talk.session.messages == EXCHANGE


def test_a_file_that_cannot_be_read_ends_the_answer_only(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.answers = [PermissionError(13, "Permission denied", "/a/model"), BrokenPipeError()]
    assert talk.repl.handle("hello")
    assert "/a/model: Permission denied" in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
        talk.repl.handle("whoever read this has left")


def test_system_and_clear(talk: Talk) -> None:
    talk.repl.handle("/system be brief")
    assert talk.session.system == "be brief"
    talk.repl.handle("/system")
    assert talk.session.system.startswith("You are Din")
    talk.session.messages = list(EXCHANGE)
    talk.repl.handle("/clear")
    assert talk.session.messages == []


def test_a_cache_that_cannot_be_written_costs_the_history_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert type(repl_module._history()).__name__ == "InMemoryHistory"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert type(repl_module._history()).__name__ == "FileHistory"
    (tmp_path / "odd" / "afs-mlx" / "chat_history").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "odd"))
    assert type(repl_module._history()).__name__ == "InMemoryHistory", "a folder is no history"
