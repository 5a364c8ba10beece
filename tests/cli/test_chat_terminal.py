"""The chat on a terminal of its own: what a person types and sees."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from terminal import CTRL_C, ENTER, ESC_ENTER, Terminal

from afs_mlx.core.paths import state_folder
from afs_mlx.engine.bases.location import own_folder
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.pipelines.chat.saved import SavedSessions

SCRIPTED = [sys.executable, str(Path(__file__).parent / "scripted_chat.py")]
REAL = [sys.executable, "-m", "afs_mlx.cli.app", "chat"]
MARKDOWN = "Use **stz**:\n\n```asm\n  stz $10 ; clear\n```\n\n- one\n- two\n\nbare:\n  lda #$00\n  rts\n"


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def chat(tmp_path: Path, *answers: list[str], columns: int = 80, options: tuple[str, ...] = ()) -> Terminal:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers))
    words = [*SCRIPTED, str(path), "chat", "--expert", "din", *options]
    terminal = Terminal(words, dict(os.environ), columns=columns)
    terminal.until("din>")
    return terminal


def ask(terminal: Terminal, line: str, prompts: int, prompt: str = "din>") -> str:
    """Type a line and wait for the prompt after it; `prompts` are on the screen then."""
    terminal.type(line + ENTER)
    return terminal.until(prompt, count=prompts)


def test_markdown_and_assembly_in_colour(tmp_path: Path) -> None:
    pieces = [MARKDOWN[n : n + 3] for n in range(0, len(MARKDOWN), 3)]
    with chat(tmp_path, pieces) as terminal:
        shown = ask(terminal, "how?", 2)
        assert terminal.leave() == 0
    answer = shown.split("din@v2 on tiny\n")[1].split("\ndin>")[0]
    assert [line.strip() for line in answer.splitlines() if line.strip()] == [
        "Use stz:",
        "stz $10 ; clear",
        "• one",
        "• two",
        "bare:",
        "lda #$00",
        "rts",
    ], "each line once, whatever was drawn on the way"
    assert "  lda #$00\n  rts" in answer, "the indentation stays"
    assert "\x1b[1;34mstz\x1b[0m" in terminal.raw
    assert "\x1b[2m; clear\x1b[0m" in terminal.raw


@pytest.mark.parametrize("size", [1, 2, 1000], ids=lambda size: f"{size} a piece")
def test_controls_of_a_model_do_not_reach_the_terminal(tmp_path: Path, size: int) -> None:
    evil = "a\x1b]52;c;ZXZpbA==\x07b\x1b]8;;http://evil\x1b\\c\x1b]8;;\x1b\\ \x9b2Jd\u202e\u2066e "
    evil += "\x1b[8mhidden\x1b[0m\r\x08!\n\n[link](http://evil.example)"
    with chat(tmp_path, [evil[n : n + size] for n in range(0, len(evil), size)]) as terminal:
        shown = ask(terminal, "how?", 2)
        assert terminal.leave() == 0
    assert "]52;c;ZXZpbA==b]8;;http://evil" in shown
    assert "hidden" in shown
    assert "link (http://evil.example)" in shown
    for bad in ("\x1b]52", "\x1b]8", "\x9b", "\u202e", "\u2066", "\x1b[8m"):
        assert bad not in terminal.raw


def test_ctrl_c_stops_the_answer_and_keeps_what_came(tmp_path: Path) -> None:
    with chat(tmp_path, ["begun ", "WAIT"], ["second"]) as terminal:
        terminal.type("first" + ENTER)
        terminal.until("waiting..")
        terminal.type(CTRL_C)
        terminal.until("din>", count=2)
        assert "stopped" in terminal.screen.text
        assert "second" in ask(terminal, "next", 3)
        ask(terminal, "/save kept", 4)
        assert terminal.leave() == 0
    said = [message.content for message in SavedSessions().load("kept").messages]
    assert said[0] == "first"
    assert said[1].startswith("begun waiting..")
    assert said[2:] == ["next", "second"]


def test_ctrl_c_at_the_prompt_drops_the_line(tmp_path: Path) -> None:
    with chat(tmp_path, ["answer"]) as terminal:
        terminal.type("never sent" + CTRL_C)
        terminal.until("din>", count=2)
        ask(terminal, "sent", 3)
        ask(terminal, "/save kept", 4)
        assert terminal.leave() == 0
    assert [m.content for m in SavedSessions().load("kept").messages] == ["sent", "answer"]


def test_nothing_heavy_is_imported_before_a_question_and_libraries_are_not_heard(tmp_path: Path) -> None:
    with chat(tmp_path, ["HEAVY"]) as terminal:
        assert "nothing heavy" in ask(terminal, "what is there?", 2)
        assert terminal.leave() == 0
    assert "a library says hello" not in terminal.raw


@pytest.mark.parametrize("columns", [20, 80])
def test_every_command_in_a_narrow_terminal(tmp_path: Path, columns: int) -> None:
    long = (
        "A paragraph that is longer than twenty columns.\n\n```asm\n  lda.l $7E0010,x ; a comment that is long\n```\n"
    )
    with chat(tmp_path, [long], ["again"], ["edited"], columns=columns) as terminal:
        ask(terminal, "q", 2)
        for place, line in enumerate(
            ("/retry", "/stats", "/system brief", "/expert din", "/why", "/save x", "/load x")
        ):
            ask(terminal, line, 3 + place)
        terminal.type("/edit" + ENTER)
        terminal.until("din> q", count=2)
        ask(terminal, "!", 11)
        ask(terminal, "/help", 12)
        ask(terminal, "/clear", 13)
        ask(terminal, "/wat", 14)
        assert terminal.leave() == 0
    words = " ".join(terminal.screen.text.split())
    for expected in ("again", "edited", "12.5 tokens/s", "not routed", "leave (also", "cleared", "there is no /wat"):
        assert expected in words
    assert "Traceback" not in words
    assert [m.content for m in SavedSessions().load("x").messages] == ["q", "again"]


def test_lines_are_kept_for_the_next_time(tmp_path: Path) -> None:
    with chat(tmp_path, ["one"]) as terminal:
        ask(terminal, f"several{ESC_ENTER}lines", 2)
        assert terminal.leave() == 0
    path = state_folder() / "chat_history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with chat(tmp_path, ["two"]) as terminal:
        terminal.type("\x1b[A")
        terminal.until("several")
        assert "two" in ask(terminal, "", 2)


def test_answers_in_a_file_without_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([["**one**"]]))
    out = tmp_path / "out.txt"
    command = " ".join([*SCRIPTED, str(path), "chat", "--expert", "din", ">", str(out)])
    with Terminal(["sh", "-c", command], dict(os.environ)) as terminal:
        terminal.until("din>")
        ask(terminal, "q", 2)
        assert terminal.leave() == 0
    assert out.read_text() == "**one**\n"


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_simple_terminal_gets_plain_text(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([["**one**"]]))
    command = ["env", f"TERM={name}", *SCRIPTED, str(path), "chat", "--expert", "din", "q"]
    with Terminal(command, dict(os.environ)) as terminal:
        assert terminal.ended() == 0
    assert "**one**" in terminal.screen.text
    assert "\x1b" not in terminal.raw


@pytest.fixture
def tiny() -> None:
    build_tiny_qwen2(own_folder("tiny-qwen2"))


def test_a_model_loads_while_the_person_types_and_ctrl_c_stops_it(tiny: None) -> None:
    endless = ("--set", "max_tokens=60000", "--set", "context_tokens=62000")
    with Terminal([*REAL, "--expert", "general", "--base", "tiny-qwen2", *endless], dict(os.environ)) as terminal:
        terminal.until("general>")
        terminal.type("hello" + ENTER)
        terminal.until("general on tiny-qwen2 (demo)")
        began = len(terminal.screen.text)
        terminal.read_until(lambda: len(terminal.screen.text) >= began + 40, 60, "an answer")
        terminal.type(CTRL_C)
        terminal.until("general (demo)>")
        terminal.type("/stats" + ENTER)
        shown = terminal.until("prompt caches")
        assert "1 conversations" in shown, "what was computed of a stopped answer is kept"
        terminal.until("general (demo)>", count=2)
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.raw


def test_leaving_at_once_ends_quietly(tiny: None) -> None:
    with Terminal([*REAL, "--expert", "general", "--base", "tiny-qwen2"], dict(os.environ)) as terminal:
        terminal.until("general>")
        assert terminal.leave() == 0
    assert "terminate called" not in terminal.raw
    assert "Traceback" not in terminal.raw
