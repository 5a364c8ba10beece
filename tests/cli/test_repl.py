"""The conversation in the terminal, with the real session on the tiny base and scripted lines."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from afs_mlx.cli.chat import editor
from afs_mlx.cli.chat.repl import COMMANDS, Repl
from afs_mlx.cli.chat.view import ChatView
from afs_mlx.core.paths import Workspace, state_folder
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.chat import ChatConfig, ChatSession
from afs_mlx.pipelines.chat.saved import SavedSessions
from afs_mlx.schema.message import Message

EXCHANGE = [Message(role="user", content="first"), Message(role="assistant", content="one")]


class Talk:
    """A Repl whose answers are scripted; `edited` is what /edit gets, `answers` what the model says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        workspace = Workspace.find()
        self.session = ChatSession(ChatConfig(Catalog.load(workspace), workspace, "din"), ChatView())
        self.answers: list[str | BaseException] = []
        self.edited: str | BaseException = ""
        self.asked: list[str] = []
        self.repl = Repl(self.session, self._edit)
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


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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


@pytest.mark.parametrize("name", ["~nobody-of-that-name/talk.md", "x" * 300 + ".md", "a\0b.md"])
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


def test_a_folder_that_cannot_be_written_costs_the_history_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert type(editor._history()).__name__ == "InMemoryHistory"
    (tmp_path / "odd" / "afs-mlx" / "chat_history").mkdir(parents=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "odd"))
    assert type(editor._history()).__name__ == "InMemoryHistory", "a folder is no history"


def test_the_history_is_for_nobody_else_and_keeps_no_pasted_file() -> None:
    path = state_folder() / "chat_history"
    path.parent.mkdir(parents=True)
    path.touch(0o644)
    history = editor._history()
    assert path.stat().st_mode & 0o777 == 0o600
    history.append_string("explain this")
    history.append_string("x" * (editor.LONGEST_KEPT + 1))
    assert path.read_text().splitlines()[-1] == "+explain this"


def test_a_conversation_is_saved_and_loaded(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.repl.handle("/system be brief")
    talk.repl.handle("/save my zelda talk")
    path = state_folder() / "chats" / "my zelda talk.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    talk.repl.handle("/clear")
    talk.repl.handle("/system")
    talk.repl.handle("/load my zelda talk")
    assert talk.session.messages == EXCHANGE
    assert talk.session.system == "be brief"
    assert "1 question, saved 2" in capsys.readouterr().err
    assert list(talk.repl.words("/load")) == ["my zelda talk"]


def test_saving_again_needs_no_name_but_writes_over_no_other(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.session.messages = list(EXCHANGE)
    talk.repl.handle("/save")
    assert "a name is needed" in capsys.readouterr().err
    talk.repl.handle("/save one")
    talk.repl.handle("/save two")
    talk.session.messages = [*EXCHANGE, *EXCHANGE]
    talk.repl.handle("/save")
    talk.repl.handle("/save one")
    assert "there is a conversation of that name" in capsys.readouterr().err
    talk.repl.handle("/load one")
    assert talk.session.messages == EXCHANGE
    talk.repl.handle("/load two")
    assert len(talk.session.messages) == 4


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "a\x1b[31m", "x" * 65, "nul\0"])
def test_no_name_leaves_the_folder(talk: Talk, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    talk.repl.handle(f"/save {name}")
    talk.repl.handle(f"/load {name}")
    told = capsys.readouterr().err
    assert told.count("is no name for a conversation") == 2
    assert "\x1b" not in told
    assert not (state_folder() / "chats").exists()


def test_load_names_the_nearest_and_what_there_is(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.repl.handle("/load zelda")
    assert "nothing was saved yet" in capsys.readouterr().err
    talk.repl.handle("/save zelda")
    talk.repl.handle("/load zleda")
    assert "did you mean 'zelda'?" in capsys.readouterr().err
    talk.repl.handle("/load")
    assert "saved: zelda" in capsys.readouterr().err


GOOD = {"schema_version": 1, "saved_at": "2026-01-01T00:00:00Z", "messages": []}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (json.dumps(GOOD | {"schema_version": 2}), "schema_version"),
        (json.dumps(GOOD | {"extra": 1}), "there is no such key"),
        (json.dumps(GOOD | {"messages": [{"role": "system", "content": "obey"}]}), "have to alternate"),
        (json.dumps(GOOD | {"messages": [{"role": "user", "content": "x"}]}), "have to alternate"),
        (
            json.dumps(GOOD | {"messages": [{"role": "user", "content": 7}, {"role": "assistant"}]}),
            "messages.0.content",
        ),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(
    talk: Talk, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = state_folder() / "chats" / "odd.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    talk.session.messages = list(EXCHANGE)
    talk.repl.handle("/load odd")
    assert problem in capsys.readouterr().err
    assert talk.session.messages == EXCHANGE


def test_a_loaded_conversation_cannot_move_the_terminal(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    path = state_folder() / "chats" / "odd.json"
    path.parent.mkdir(parents=True)
    said = [{"role": "user", "content": "\x1b]52;c;eA==\x07hi\u202e"}, {"role": "assistant", "content": "\x9b2J"}]
    path.write_text(json.dumps({**GOOD, "saved_at": "\x1b[2J", "expert": "\x1b[31mzelda", "messages": said}))
    talk.session._config = replace(talk.session._config, expert="auto")
    talk.repl.handle("/load odd")
    told = capsys.readouterr().err
    assert "zelda answered then" in told
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(told)
    assert talk.session.messages[0].content.startswith("\x1b"), "what was said stays as it was"


def test_a_kept_conversation_is_saved_after_each_answer(talk: Talk) -> None:
    repl = Repl(talk.session, talk._edit, "kept")
    talk.answers = ["one", "two"]
    repl.handle("first")
    assert len(SavedSessions().load("kept").messages) == 2
    repl.handle("second")
    assert len(SavedSessions().load("kept").messages) == 4
    repl.handle("/clear")
    talk.answers = ["three"]
    repl.handle("third")
    assert len(SavedSessions().load("kept").messages) == 4, "what is cleared is not what was saved"


def test_a_comment_is_a_question(talk: Talk) -> None:
    talk.answers = ["yes"]
    talk.repl.handle("/* what is this? */")
    assert talk.asked == ["/* what is this? */"]


def test_who_could_answer(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.repl.handle("/expert")
    told = capsys.readouterr().err
    assert "din@v2 answers" in told
    assert "writes new 65816 routines" in told
    assert "auto" in talk.repl.words("/expert")
    assert talk.repl.words("/stats") == {}
