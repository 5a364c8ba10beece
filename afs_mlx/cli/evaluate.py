"""`afs-mlx eval`."""

from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson, BaseName, RunName
from afs_mlx.cli.render.console import emit_json, err, notice, out, step
from afs_mlx.core.errors import UsageError


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="EXPERT[@VERSION]|PATH", help="An expert, a run folder or a model folder.")
    ],
    suite: Annotated[str, typer.Option("--suite", help="A suite of evals/suites/ instead of the version's own.")] = "",
    base: BaseName = "auto",
    run: RunName = "",
    without_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Ask the bare base under the expert's prompt.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score an expert, a run or a model on a suite.

    The score is a share in [0, 1] with the number of cases and a 95 % interval.
    """
    from afs_mlx.answering import for_target
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.evaluate import config_for
    from afs_mlx.pipelines.evaluate import evaluate as run_evaluation

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    found = for_target(target, base, run, catalog, workspace, adapter=not without_adapter)
    for text in found.notices:
        notice(text)
    named = suite or (found.expert.version.suite if found.expert and found.expert.version else "")
    if not named:
        raise UsageError("this target names no suite", "--suite", "name one of evals/suites/")
    config = config_for(found, workspace.find_file(f"evals/suites/{named.removesuffix('.toml')}.toml"), workspace)
    step(f"eval {config.label} on {config.suite.stem}")
    with count_progress("  answers") as progress:
        result = run_evaluation(config, lambda case: progress(case.done, case.total, case.result.id))
    if as_json:
        emit_json(
            {
                "suite": result.suite,
                "label": config.label,
                "base": config.base["id"],
                "score": result.score.model_dump() if result.score else None,
                "checks": {name: score.model_dump() for name, score in result.checks.items()},
                "gate": result.verdict.model_dump(),
                "result": str(result.path),
            }
        )
        return
    console = out()
    console.print(f"{result.suite} {result.score or 'not verified: ' + result.why_unverified}", markup=False)
    for name, score in result.checks.items():
        console.print(f"  {name:<12} {score}", markup=False)
    for case in result.results:
        mark = {True: "pass", False: "fail", None: "?"}[case.passed]
        err().print(f"  {case.id} {mark}: {case.why}", markup=False)
    err().print(f"measures {result.measures}; {result.limits}", markup=False)
    gate = "passed" if result.verdict.passed else "not passed"
    err().print(f"gate {gate}: {result.verdict.reason}\nresult {workspace.shown(Path(result.path))}", markup=False)
