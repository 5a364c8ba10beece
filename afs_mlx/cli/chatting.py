"""`afs-mlx chat`: a REPL, or one answer for a prompt or piped input."""

import os
import select
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, notice
from afs_mlx.core.errors import UsageError

if TYPE_CHECKING:
    from afs_mlx.cli.chat.view import ChatView
    from afs_mlx.pipelines.chat import ChatSession

PIPE_SILENT_S = 2.0


def chat(
    prompt: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="One question; without it a conversation starts.")
    ] = "",
    expert: Annotated[
        str, typer.Option("--expert", help="An expert, expert@version, or auto: the router chooses.")
    ] = "auto",
    base: BaseName = "auto",
    run: RunName = "",
    session: Annotated[
        str, typer.Option("--session", help="Continue the saved conversation NAME, and keep it up to date.")
    ] = "",
    fused: Annotated[
        bool, typer.Option("--fused", help="The run's fused model answers, not the base with its adapter.")
    ] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="mlx, or ollama: models deployed from this workspace answer.")
    ] = "mlx",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Instead of the expert's own: temperature (0 is greedy), top_p, max_tokens, context_tokens, stop; "
            "or a seed. May be repeated; --temperature, --max-tokens and --seed are short for three of them.",
        ),
    ] = None,
    as_json: AsJson = False,
    temperature: Annotated[float | None, typer.Option("--temperature", hidden=True)] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", hidden=True)] = None,
    seed: Annotated[int | None, typer.Option("--seed", hidden=True)] = None,
) -> None:
    """Talk to an expert.

    Without PROMPT a conversation starts; piped input is read as the question, or appended to PROMPT.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are first imported
    from afs_mlx.cli.chat.repl import converse
    from afs_mlx.cli.chat.view import ChatView
    from afs_mlx.core.config import apply_overrides
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.chat import ChatConfig, ChatSession
    from afs_mlx.pipelines.chat.config import sampling_changes

    named = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    wanted = apply_overrides({key: value for key, value in named.items() if value is not None}, settings or [])
    sampling, checked_seed = sampling_changes(wanted)
    workspace = Workspace.find()
    config = ChatConfig(
        catalog=Catalog.load(workspace),
        workspace=workspace,
        expert=expert,
        base=base,
        run=run,
        fused=fused,
        backend=backend,
        sampling=sampling,
        seed=checked_seed,
    )
    view = ChatView()
    talk = ChatSession(config, view)
    if session:
        _resume(talk, session)
    question = _question(prompt)
    if as_json and not question:
        raise UsageError("--json gives one answer", "--json", "give a PROMPT, or pipe a question")
    try:
        if question:
            _answer_once(talk, view, question, session, as_json)
        else:
            converse(talk, session)
    finally:
        talk.close()


def _question(prompt: str) -> str:
    """PROMPT, what is piped, or both; empty where a conversation is to start."""
    if sys.stdin is None or not sys.stdin.isatty():
        prompt = "\n\n".join(part for part in (prompt, _piped(prompt)) if part)
        if not prompt:
            raise UsageError(
                "there is no question: the piped input is empty", "chat", "pipe a question, or give one as PROMPT"
            )
    if any("\ud800" <= char <= "\udfff" for char in prompt):  # how Python shows an argument's bytes that are no UTF-8
        raise UsageError("PROMPT is not UTF-8", "chat", "convert it first, for example with iconv -t utf-8")
    return prompt


def _resume(talk: "ChatSession", name: str) -> None:
    """Continue what is saved under this name; a new one begins where nothing is."""
    from afs_mlx.pipelines.chat.saved import SavedSessions

    saved = SavedSessions()
    if not saved.has(name):
        notice(f"a new conversation: it is saved as {name}")
        return
    found = saved.load(name)
    talk.restore(found)
    turns = len(found.messages) // 2
    notice(f"{name} goes on after {turns} question{'s' if turns != 1 else ''}, saved {found.saved_at}")


def _answer_once(talk: "ChatSession", view: "ChatView", question: str, session: str, as_json: bool) -> None:
    from afs_mlx.cli.chat.view import show
    from afs_mlx.pipelines.chat.saved import SavedSessions

    try:
        if as_json:
            answer = "".join(talk.ask(question))
            emit_json(_record(talk, view, answer))
        else:
            show(talk.ask(question))
    finally:
        if session and talk.messages:
            SavedSessions().save(session, talk.snapshot())


def _record(talk: "ChatSession", view: "ChatView", answer: str) -> dict[str, Any]:
    """The answer exactly as it came, and all that is known of it."""
    ready, route, usage = talk.ready, talk.route, talk.usage
    chosen = {"confidence": route.confidence, "reason": route.reason, "scores": dict(route.scores)} if route else None
    return {
        "answer": answer,
        "expert": ready.label if ready else "",
        "base": ready.base if ready else "",
        "demo": ready.demo if ready else False,
        "run": ready.run if ready else "",
        "fused": ready.fused if ready else False,
        "server": ready.where if ready else "",
        "route": chosen,
        "usage": vars(usage) if usage else None,
        "notices": view.notices,
    }


def _piped(prompt: str) -> str:
    """What comes through the pipe, to its end; a silent pipe is waited for only where there is no PROMPT."""
    if sys.stdin is None:
        return ""
    if not _has_begun():
        # A parent may hold the pipe open for as long as it lives: a question that is complete does not wait for it.
        if prompt:
            notice(f"nothing came through the pipe in {PIPE_SILENT_S:g} s: PROMPT is the question; slow input: < FILE")
            return ""
        notice("waiting for piped input; without any, add </dev/null")
    try:
        return sys.stdin.buffer.read().decode("utf-8").replace("\r\n", "\n").strip()
    except UnicodeDecodeError as error:
        fix = "convert it first, for example with iconv -t utf-8"
        raise UsageError(f"the piped input is not UTF-8: {error.reason} at byte {error.start}", "chat", fix) from error


def _has_begun() -> bool:
    """Whether a read would return now or soon: a file, an ended pipe, or one whose first bytes are there."""
    try:
        return bool(select.select([sys.stdin], [], [], PIPE_SILENT_S)[0])
    except (OSError, ValueError):  # no file behind it, as in a test or a notebook: nothing to wait for
        return True
