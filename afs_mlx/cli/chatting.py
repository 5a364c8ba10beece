"""`afs-mlx chat`: a REPL, or one answer for a prompt or piped input."""

import select
import sys
from typing import Annotated

import typer

from afs_mlx.cli.options import BaseName, RunName
from afs_mlx.cli.render.console import notice
from afs_mlx.core.errors import UsageError

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
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is greedy; the expert's own otherwise.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="The longest answer; the expert's own otherwise.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampled answers repeatable.")] = None,
) -> None:
    """Talk to an expert.

    Without PROMPT a conversation starts; piped input is read as the question, or appended to PROMPT.
    """
    from afs_mlx.cli.chat.repl import converse
    from afs_mlx.cli.chat.view import ChatView, answer
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.chat import ChatConfig, ChatSession

    if temperature is not None and not 0 <= temperature <= 5:
        raise UsageError(f"{temperature} is no temperature", "--temperature", "a number from 0 to 5; 0 is greedy")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens are no answer", "--max-tokens", "a number above 0")
    workspace = Workspace.find()
    config = ChatConfig(
        catalog=Catalog.load(workspace),
        workspace=workspace,
        expert=expert,
        base=base,
        run=run,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    view = ChatView()
    session = ChatSession(config, view)
    if sys.stdin is None or not sys.stdin.isatty():
        prompt = "\n\n".join(part for part in (prompt, _piped(prompt)) if part)
        if not prompt:
            raise UsageError(
                "there is no question: the piped input is empty", "chat", "pipe a question, or give one as PROMPT"
            )
    if any("\ud800" <= char <= "\udfff" for char in prompt):  # how Python shows an argument's bytes that are no UTF-8
        raise UsageError("PROMPT is not UTF-8", "chat", "convert it first, for example with iconv -t utf-8")
    if prompt:
        answer(session, prompt)
    else:
        converse(session, view)


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
