"""A deployment while it runs: the verdict, then the stages of shipping; and what is there at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import err, notice, plain, step
from afs_mlx.cli.render.shipping import shipped_json, shipping_progress, show_shipped

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.evaluation.history import Judgement
    from afs_mlx.flows.deploy import DeployEvent, DeployResult

WORDS = {
    "verdict": "what the newest evaluation says",
    "fuse": "add the adapter to the base",
    "export": "write the GGUF",
    "register": "make it a model in Ollama",
}


@contextmanager
def deploy_progress(workspace: "Workspace") -> Iterator[Callable[["DeployEvent"], None]]:
    """Headings, the verdict, and within a stage its own progress, on stderr."""
    from afs_mlx.flows.deploy import STAGES, Judged
    from afs_mlx.flows.shipping import StageStarted

    with shipping_progress() as show:

        def hear(event: "DeployEvent") -> None:
            if isinstance(event, Judged):
                show_judgement(event.judgement, workspace)
            elif isinstance(event, StageStarted):
                number = STAGES.index(event.name) + 1
                show(StageStarted(f"[{number}/{len(STAGES)}] {event.name}: {WORDS[event.name]}"))
            else:
                show(event)

        yield hear


def show_judgement(judgement: "Judgement", workspace: "Workspace") -> None:
    """The score with what it is held against, and every reason against it."""
    result = judgement.result
    if result is not None:
        before = judgement.before
        held = f"; before it {before.score} ({before.whose})" if before else "; nothing before it"
        err().print(f"  {result.suite} {result.score or 'not verified'}{held}", markup=False)
    if judgement.path is not None and judgement.result is not None:
        err().print(f"  {workspace.shown(judgement.path)}", markup=False)
    for reason in judgement.reasons:
        err().print(f"  against it: {plain(reason)}", style="yellow", markup=False)
    if judgement.passed:
        err().print("  may be deployed", markup=False)


def show_deployed(result: "DeployResult", workspace: "Workspace") -> None:
    """What was overridden, and what is on the server."""
    if result.overrode:
        notice(f"deployed by --force, which is recorded: {plain(result.overrode)}")
    show_shipped(result.shipped, workspace)
    if result.record is not None:
        err().print(f"  record {workspace.shown(result.record)}", markup=False)


def show_planned(result: "DeployResult", workspace: "Workspace") -> None:
    """What a dry run would have done; a refusal first."""
    if not result.judgement.passed:
        would = "would be overridden by --force" if result.overrode else "would be refused, --force overrides it"
        step(f"the verdict {would}")
    show_shipped(result.shipped, workspace)


def deployed_json(result: "DeployResult") -> dict[str, Any]:
    """The same for `--json`."""
    judgement = result.judgement
    stored = judgement.result
    return {
        **shipped_json(result.shipped),
        "verdict": {
            "passed": judgement.passed,
            "reasons": list(judgement.reasons),
            "score": stored.score.model_dump() if stored and stored.score else None,
            "before": judgement.before.score.model_dump() if judgement.before else None,
            "result": str(judgement.path or ""),
        },
        "forced": bool(result.overrode),
        "overrode": result.overrode,
        "record": str(result.record or ""),
    }
