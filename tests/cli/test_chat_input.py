"""What reaches an expert: typed lines through the real line editor, and a question from arguments and pipes."""

import io
import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from afs_mlx.cli import chatting
from afs_mlx.cli.app import app
from afs_mlx.cli.chat.repl import converse
from afs_mlx.cli.chat.view import ChatView
from afs_mlx.core.paths import Workspace, cache_folder
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.chat import ChatConfig, ChatSession
from afs_mlx.schema.message import Message

CTRL_C, CTRL_D, ALT_ENTER, ENTER = "\x03", "\x04", "\x1b\r", "\r"


class Answers:
    """Stands where the model would: `answer to QUESTION`; STOP is a Ctrl-C after the first words."""

    usage = SimpleNamespace(prompt_tokens=7, answer_tokens=3, tokens_per_s=12.5, first_token_s=0.25, finish="stop")

    def stream(self, messages: Sequence[Message], *_: object) -> Iterator[str]:
        yield "answer "
        if "STOP" in messages[-1].content:
            raise KeyboardInterrupt
        yield f"to {messages[-1].content}"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> ChatSession:
    """A real session that routes and remembers, without a model."""

    def load(self: Any) -> None:
        self._generator = Answers()

    monkeypatch.setattr(ChatSession, "_load", load)
    workspace = Workspace.find()
    view = ChatView()
    session = ChatSession(ChatConfig(Catalog.load(workspace), workspace), view)
    session.view = view  # type: ignore[attr-defined]
    return session


def talk(session: Any, *typed: str) -> list[str]:
    """Type into the terminal, then leave with Ctrl-D; returns what was asked and answered."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("".join(typed) + CTRL_D)
        converse(session, session.view)
    return [message.content for message in session.messages]


def test_a_conversation(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    said = talk(session, "explain this", ENTER, ENTER, "and", ALT_ENTER, "that", ENTER)
    assert said == ["explain this", "answer to explain this", "and\nthat", "answer to and\nthat"]
    assert capsys.readouterr().out == "answer to explain this\nanswer to and\nthat\n"
    assert "+and" in (cache_folder() / "chat_history").read_text()


def test_ctrl_c_at_the_prompt_drops_the_line_and_quit_leaves(session: ChatSession) -> None:
    assert talk(session, "never sent", CTRL_C, "sent", ENTER, "/quit", ENTER, "too late", ENTER)[::2] == ["sent"]


def test_ctrl_c_during_an_answer_keeps_what_came(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(session, "STOP", ENTER, "go on", ENTER) == ["STOP", "answer ", "go on", "answer to go on"]
    assert "stopped" in capsys.readouterr().err


def test_edit_begins_with_the_question_and_retry_repeats_it(session: ChatSession) -> None:
    assert talk(session, "one", ENTER, "/edit", ENTER, " more", ENTER) == ["one more", "answer to one more"]
    assert talk(session, "/retry", ENTER) == ["one more", "answer to one more"]


@pytest.mark.parametrize("leave", [CTRL_C, "\x01\x0b" + CTRL_D], ids=["Ctrl-C", "Ctrl-D on an emptied line"])
def test_an_edit_that_is_left_changes_nothing(session: ChatSession, leave: str) -> None:
    said = talk(session, "one", ENTER, "/edit", ENTER, leave, "two", ENTER)
    assert said == ["one", "answer to one", "two", "answer to two"]


def test_who_answers_and_why(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    talk(session, *(word + ENTER for word in ("/why", "/stats", "/expert", "explain this", "/why", "/stats", "/help")))
    told = capsys.readouterr().err
    assert "nothing was routed yet" in told
    assert "nothing was answered yet" in told
    assert "auto: the router chooses for each question" in told
    assert "keyword hits: veran 1" in told
    assert "7 prompt tokens, 3 answer tokens, 12.5 tokens/s, first token after 0.25 s, ended by stop" in told
    assert "/save FILE" in told
    talk(session, "/expert din", ENTER, "/why", ENTER)
    told = capsys.readouterr().err
    assert "answers" in told
    assert "the expert was named, not routed" in told


def test_a_prompt_that_is_not_utf8(session: ChatSession) -> None:
    result = CliRunner().invoke(app, ["chat", "caf\udce9"])
    assert result.exit_code == 2, result.output
    assert "PROMPT is not UTF-8" in result.output


def test_prompt_and_pipe_become_one_question(session: ChatSession) -> None:
    result = CliRunner().invoke(app, ["chat", "explain"], input="lda #$00\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "answer to explain\n\nlda #$00\n"


@pytest.fixture
def silent_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """A stdin whose other end is open and has written nothing; what a read would give once it has."""
    reading, writing = os.pipe()
    late = io.BytesIO(b"late")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(fileno=lambda: reading, isatty=lambda: False, buffer=late))
    monkeypatch.setattr(chatting, "PIPE_SILENT_S", 0)
    yield late
    os.close(reading)
    os.close(writing)


def test_a_prompt_does_not_wait_for_a_silent_pipe(
    session: ChatSession, silent_pipe: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    chatting.chat("explain")
    told = capsys.readouterr()
    assert told.out == "answer to explain\n"
    assert "PROMPT is the question" in told.err
    assert silent_pipe.tell() == 0, "a read would wait for as long as the pipe is open"


def test_without_a_prompt_a_silent_pipe_is_waited_for(
    session: ChatSession, silent_pipe: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    chatting.chat()
    told = capsys.readouterr()
    assert told.out == "answer to late\n"
    assert "waiting for piped input; without any, add </dev/null" in told.err


def test_lines_of_another_system_are_lines(silent_pipe: io.BytesIO) -> None:
    silent_pipe.write(b"lda #$00\r\nrts\r\n")
    silent_pipe.seek(0)
    assert chatting._piped("") == "lda #$00\nrts"
