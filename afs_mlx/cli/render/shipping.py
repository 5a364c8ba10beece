"""How shipping to Ollama is shown: progress while it runs, then what is there, or what a dry run would do."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import err, notice, out, plain, size, step

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.flows.shipping import ShipEvent, ShipResult
    from afs_mlx.pipelines.register import RegisterResult

LONGEST_VALUE = 60


@contextmanager
def shipping_progress() -> Iterator[Callable[["ShipEvent"], None]]:
    """Events on stderr, one live line at a time: tensors while exporting, bytes while sending."""
    from afs_mlx.cli.render.export import ChecksView
    from afs_mlx.cli.render.progress import bytes_progress, count_progress
    from afs_mlx.clients.ollama.events import Noted, Sent, Stage
    from afs_mlx.flows.shipping import Checked, StageStarted, TensorWritten

    with ExitStack() as live:
        sent: Callable[[int, int], None] | None = None
        written: Callable[[int, int, str], None] | None = None
        checks = ChecksView("quick")

        def show(event: "ShipEvent") -> None:
            nonlocal sent, written
            if isinstance(event, Sent):
                sent = sent or live.enter_context(bytes_progress())
                sent(event.done_bytes, event.total_bytes)
            elif isinstance(event, TensorWritten):
                written = written or live.enter_context(count_progress("  write"))
                written(event.done, event.total, "")
            else:
                live.close()
                sent = written = None
                if isinstance(event, StageStarted):
                    step(event.name)
                elif isinstance(event, Checked):
                    checks(event.check)
                elif isinstance(event, Stage):
                    err().print(f"  {plain(event.text)}", markup=False)
                elif isinstance(event, Noted):
                    notice(plain(event.text))

        yield show


def show_shipped(result: "ShipResult", workspace: "Workspace") -> None:
    """What is on the server now; the tag on stdout."""
    tell_unverified(result)
    registered = result.registered
    if registered.calls:
        _show_plan(result, registered, workspace)
        return
    if registered.answer:
        err().print(f"  it answers: {plain(registered.answer.strip())}", markup=False)
    if registered.previous_digest:
        err().print(f"  in place of {registered.previous_digest[:12]}", markup=False)
    server = f"Ollama {registered.version} at {registered.server}"
    err().print(f"  {size(registered.size_bytes or 0)} on {plain(server)}; ollama run {registered.tag}", markup=False)
    out().print(registered.tag, markup=False)


def tell_unverified(result: "ShipResult") -> None:
    """A notice where the GGUF was kept without its checks, by this run or by the one that wrote it."""
    if result.exported is None:
        return
    checks = result.exported.verification
    skipped = [check for check in checks.checks if check.status == "not run"] if checks else []
    if checks is None:
        notice(f"{result.plan.gguf.name} was never verified: afs-mlx export gguf writes and verifies it")
    elif skipped:
        notice(f"not verified: {', '.join(check.name for check in skipped)}: {plain(skipped[0].reason)}")


def shipped_json(result: "ShipResult") -> dict[str, Any]:
    """The same for `--json`."""
    checks = result.exported.verification if result.exported else None
    return {
        "tag": result.plan.tag,
        "gguf": str(result.plan.gguf),
        "fused": result.fused is not None,
        "gguf_sha256": result.exported.sha256 if result.exported else "",
        "verification": checks.model_dump(mode="json") if checks else None,
        "registered": asdict(result.registered),
    }


def _show_plan(result: "ShipResult", registered: "RegisterResult", workspace: "Workspace") -> None:
    plan = result.plan
    if plan.fuse:
        out().print("fuse     first, which is not done yet", markup=False)
    there = plan.gguf.is_file()
    state = size(plan.gguf.stat().st_size) if there else "not there yet"
    out().print(f"gguf     {workspace.shown(plan.gguf)} ({state})", markup=False)
    out().print(f"server   {registered.server}", markup=False)
    for call in registered.calls:
        large = f"  {size(call.size_bytes)}" if call.size_bytes is not None else ""
        out().print(f"{call.method:<8} {call.path}{large}", markup=False)
        for key, value in (call.body or {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            short = json.dumps(text, ensure_ascii=False)[1:-1] if "\n" in text else text
            out().print(f"           {key}: {plain(_cut(short))}", markup=False)
    out().print("\nModelfile", markup=False)
    out().print(plain(registered.modelfile), markup=False, end="")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"
