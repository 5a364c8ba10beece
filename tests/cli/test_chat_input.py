"""What reaches an expert: typed lines through the real line editor, and a question from arguments and pipes."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from afs_mlx.cli import chatting
from afs_mlx.cli.app import app
from afs_mlx.cli.chat.editor import editor
from afs_mlx.cli.chat.repl import COMMANDS, Repl, converse
from afs_mlx.cli.chat.view import ChatView
from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace, state_folder
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing.keywords import KeywordRouter
from afs_mlx.pipelines.chat import AnswerUsage, ChatConfig, ChatSession, ExpertReady
from afs_mlx.pipelines.chat.local import LocalBackend
from afs_mlx.pipelines.chat.saved import SavedSessions
from afs_mlx.schema.message import Message

CTRL_C, CTRL_D, ALT_ENTER, ENTER = "\x03", "\x04", "\x1b\r", "\r"


class Answers:
    """Stands where the models would: `answer to QUESTION`; STOP is a Ctrl-C after the first words."""

    holds_opening = False
    notices = ()
    usage = AnswerUsage(7, 3, 12.5, 0.25, "stop", cached_tokens=5)
    facts = ExpertReady("din@v2", "tiny-qwen2", True, "one (named)", ("the base is small",), "one")

    def count(self, messages: Sequence[Message]) -> int:
        return len(messages)

    def stream(self, messages: Sequence[Message], *_: object) -> Iterator[str]:
        yield "answer "
        if "STOP" in messages[-1].content:
            raise KeyboardInterrupt
        yield f"to {messages[-1].content}"


@pytest.fixture(autouse=True)
def warmed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No model is loaded; what would have been, in the background."""
    loaded: list[str] = []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("afs_mlx.experts.routing.default_router", KeywordRouter)
    monkeypatch.setattr(LocalBackend, "speaker", lambda *_: Answers())
    monkeypatch.setattr(LocalBackend, "warm", lambda _, first: loaded.append(first()[0].label))
    return loaded


@pytest.fixture
def session() -> ChatSession:
    """A real session that routes and remembers, without a model."""
    workspace = Workspace.find()
    return ChatSession(ChatConfig(Catalog.load(workspace), workspace), ChatView())


def talk(session: ChatSession, *typed: str) -> list[str]:
    """Type into the terminal, then leave with Ctrl-D; returns what was asked and answered."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("".join(typed) + CTRL_D)
        converse(session)
    return [message.content for message in session.messages]


def test_a_conversation(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    said = talk(session, "explain this", ENTER, ENTER, "and", ALT_ENTER, "that", ENTER)
    assert said == ["explain this", "answer to explain this", "and\nthat", "answer to and\nthat"]
    assert capsys.readouterr().out == "answer to explain this\nanswer to and\nthat\n"
    assert "+and" in (state_folder() / "chat_history").read_text()


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
    assert "matched “explain”" in told
    assert (
        "7 prompt tokens (5 of them known), 3 answer tokens, 12.5 tokens/s, first token after 0.25 s, ended by stop"
        in told
    )
    assert "/save [NAME]" in told
    talk(session, "/expert din", ENTER, "/why", ENTER)
    told = capsys.readouterr().err
    assert "answers" in told
    assert "the expert was named, not routed" in told


def test_a_prompt_that_is_not_utf8() -> None:
    result = CliRunner().invoke(app, ["chat", "caf\udce9"])
    assert result.exit_code == 2, result.output
    assert "PROMPT is not UTF-8" in result.output


def test_prompt_and_pipe_become_one_question() -> None:
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


def test_a_prompt_does_not_wait_for_a_silent_pipe(silent_pipe: io.BytesIO, capsys: pytest.CaptureFixture[str]) -> None:
    chatting.chat("explain")
    told = capsys.readouterr()
    assert told.out == "answer to explain\n"
    assert "PROMPT is the question" in told.err
    assert silent_pipe.tell() == 0, "a read would wait for as long as the pipe is open"


def test_without_a_prompt_a_silent_pipe_is_waited_for(
    silent_pipe: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    chatting.chat()
    told = capsys.readouterr()
    assert told.out == "answer to late\n"
    assert "waiting for piped input; without any, add </dev/null" in told.err


def test_lines_of_another_system_are_lines(silent_pipe: io.BytesIO) -> None:
    silent_pipe.write(b"lda #$00\r\nrts\r\n")
    silent_pipe.seek(0)
    assert chatting._piped("") == "lda #$00\nrts"


def test_models_begin_to_load_with_the_first_prompt(session: ChatSession, warmed: list[str]) -> None:
    talk(session, "one", ENTER, "two", ENTER)
    assert warmed == ["general"], "once, and before any question"
    named = ChatSession(ChatConfig(session._config.catalog, session._config.workspace, "din"), ChatView())
    talk(named)
    assert warmed == ["general", "din@v2"]


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        (("explain \\", ENTER, "this", ENTER), "explain \nthis"),
        (("```asm", ENTER, "  rts", ENTER, "```", ENTER), "```asm\n  rts\n```"),
        (("\x1b[200~lda #$00\nrts\x1b[201~", ENTER), "lda #$00\nrts"),
    ],
    ids=["backslash", "fence", "paste"],
)
def test_several_lines_are_one_question(session: ChatSession, typed: tuple[str, ...], asked: str) -> None:
    assert talk(session, *typed)[0] == asked


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("/s", ["/system", "/save", "/stats"]),
        ("/load ", ["zelda"]),
        ("/expert ve", ["veran"]),
        ("/stats ", []),
        ("s", []),
        ("/* two\n/s", []),
    ],
)
def test_completion(session: ChatSession, typed: str, completed: list[str]) -> None:
    SavedSessions().save("zelda", session.snapshot())
    with create_app_session(output=DummyOutput()):
        completer = editor(COMMANDS, Repl(session, str).words).completer
    found = completer.get_completions(Document(typed), CompleteEvent(completion_requested=True))
    assert [typed[: len(typed) + each.start_position] + each.text for each in found] == [
        typed[: typed.rfind(" ") + 1] + text for text in completed
    ]


def test_json_is_one_object_with_the_answer_as_it_came() -> None:
    result = CliRunner().invoke(app, ["chat", "--json", "explain \x1b[31m\x9b\u202e"])
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.stdout), "escaped"
    shown = json.loads(result.stdout)
    assert shown["answer"] == "answer to explain \x1b[31m\x9b\u202e"
    assert (shown["schema_version"], shown["expert"], shown["base"], shown["run"]) == (1, "din@v2", "tiny-qwen2", "one")
    assert shown["route"]["reason"] == "matched “explain”"
    assert shown["usage"]["answer_tokens"] == 3
    assert shown["notices"] == ["the base is small"]


def test_json_needs_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UsageError, match="--json gives one answer"):
        chatting.chat(as_json=True)


def test_a_named_session_goes_on() -> None:
    for question, notice in (("one", "a new conversation"), ("two", "goes on after 1 question")):
        result = CliRunner().invoke(app, ["chat", "--session", "kept", question])
        assert result.exit_code == 0, result.output
        assert notice in result.stderr
    assert [m.content for m in SavedSessions().load("kept").messages][::2] == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--set", "heat=1"], "there is no setting 'heat'"),
        (["--set", "temperature=9"], "9 is no temperature"),
        (["--temperature", "-1"], "-1.0 is no temperature"),
        (["--max-tokens", "0"], "0 is no max_tokens"),
        (["--set", "seed=-1"], "-1 is no seed"),
        (["--set", "top_p=nan"], "is no top_p"),
        (["--backend", "olama"], "did you mean 'ollama'?"),
        (["--backend", "ollama", "--fused"], "a deployed model is whole"),
        (["--fused", "--base", "tiny-qwen2"], "has its base in it"),
        (["--run", "one"], "--run needs an expert"),
        (["--session", "../x"], "is no name for a conversation"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together(words: list[str], problem: str) -> None:
    result = CliRunner().invoke(app, ["chat", *words, "hello"])
    assert result.exit_code == 2, result.output
    assert problem in result.output
