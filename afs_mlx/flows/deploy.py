"""The newest evaluation's verdict, then an expert to Ollama: what got worse, or was never measured, stays here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from afs_mlx.answering import Answerer
from afs_mlx.clients.ollama.server import full
from afs_mlx.core.errors import AfsError, RefusedError
from afs_mlx.core.files import read_json, sha256_of, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.location import AUTO
from afs_mlx.evaluation.history import Candidate, Earlier, Judgement, StoredResult, judge, read_result
from afs_mlx.evaluation.suites import load_suite
from afs_mlx.flows import shipping
from afs_mlx.flows.shipping import ShipEvent, ShipResult, StageStarted, ship
from afs_mlx.flows.shipping_plan import ShipConfig, ShipPlan, is_demo, plan
from afs_mlx.pipelines.evaluate import config_for
from afs_mlx.pipelines.register import check_tag, deployed
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.score import Score

STAGES = ("verdict", *shipping.STAGES)


@dataclass(frozen=True)
class Judged:
    """The verdict is known."""

    judgement: Judgement


type DeployEvent = Judged | ShipEvent


@dataclass(frozen=True)
class DeployResult:
    """`overrode` is what `force` passed over; `record` is None in a dry run."""

    judgement: Judgement
    shipped: ShipResult
    overrode: str
    record: Path | None


def deploy(config: ShipConfig, on_event: Callable[[DeployEvent], None]) -> DeployResult:
    """Judge, then fuse, export and register what is not done yet, and record it; a dry run refuses nothing.

    `force` ships what the verdict holds back, and says so in every record. Without it, raises RefusedError (exit 4)
    with every reason when the newest result does not count, is below the one before it or did not pass the gate:
    nothing is fused, written or registered before that.
    """
    asked = replace(config, fuse=True)
    planned = plan(asked)
    check_tag(planned.tag)
    on_event(StageStarted("verdict"))
    judgement = verdict(planned, config.workspace)
    on_event(Judged(judgement))
    overrode = "; ".join(judgement.reasons)
    if overrode and not (config.force or config.dry_run):
        raise _refusal(config, planned, judgement)
    forced = overrode if config.force else ""
    shipped = ship(replace(asked, overrode=forced), on_event)
    if config.dry_run:
        return DeployResult(judgement, shipped, forced, None)
    # Fusing may have added a reason of its own.
    return DeployResult(judgement, shipped, shipped.overrode, _keep_record(config, shipped, judgement))


def verdict(planned: ShipPlan, workspace: Workspace) -> Judgement:
    """What the stored results say of what is planned."""
    found = planned.answerer
    version = found.expert.version if found.expert else None
    relative = f"evals/suites/{version.suite}.toml" if version and version.suite else ""
    label = found.expert.label if found.expert else found.label
    if not relative or not workspace.has_file(relative):
        what = f"its suite {version.suite!r} is not written yet" if version and version.suite else "it names no suite"
        return Judgement(None, None, None, (f"{label} was never measured: {what}",))
    asked = config_for(found, workspace.find_file(relative), workspace)
    weights = asked.adapter / WEIGHTS if asked.adapter else None
    candidate = Candidate(
        label=label if asked.adapter is None else f"{label} ({asked.label})",
        suite=asked.suite.stem,
        inputs=[input_file(path) for path in load_suite(asked.suite).files],
        base=asked.base,
        system=asked.system,
        shots=[shot.model_dump() for shot in asked.shots],
        threshold=asked.threshold,
        adapter=asked.adapter.name if asked.adapter else "",
        adapter_sha256=sha256_of(weights) if weights else "",
        changed_at=_written_at(weights) if weights else "",
    )
    others = _others(found, asked.out, workspace) if asked.adapter else []
    # What was removed since has the name no longer.
    there = any(full(entry.tag) == full(planned.tag) for entry in deployed(workspace.fused / shipping.RECORD))
    before = _deployed(record_path(workspace, planned.tag), candidate) if there else None
    return judge(candidate, asked.out, others, before)


def record_path(workspace: Workspace, tag: str) -> Path:
    """Every deployment under a tag, the newest last."""
    return workspace.root / "evals" / "deployed" / f"{tag}.json"


def _others(found: Answerer, own: Path, workspace: Workspace) -> list[StoredResult]:
    """Results of the same version's other runs on the suite; a damaged one says nothing."""
    version = found.expert.version_name if found.expert else ""
    results = []
    for path in own.parents[1].glob(f"*/{own.name}"):
        if path == own or path.parent.name.startswith("."):
            continue
        try:
            result = read_result(path)
            folder = workspace.adapters / path.parents[1].name / result.adapter
            made = str(Run.read(folder).record.get("version") or "") if (folder / "run.json").is_file() else ""
        except AfsError:
            continue
        # A run that is gone has its version in its name.
        if result.adapter and (made == version if made else result.adapter.startswith(f"{version}-")):
            results.append(result)
    return results


def _deployed(path: Path, candidate: Candidate) -> Earlier | None:
    """The score of what has the tag now, where it was measured as the candidate was."""
    if not path.is_file():
        return None
    entries = read_json(path, "the record of deployments").get("deployments")
    last = entries[-1] if isinstance(entries, list) and entries else None
    if not isinstance(last, dict) or not last.get("score"):
        return None
    if (last.get("inputs"), last.get("base")) != (candidate.inputs, candidate.base):
        return None
    try:
        score = Score.model_validate(last["score"])
    except ValidationError as error:
        raise AfsError("the record of deployments is damaged", str(path), "move the file away") from error
    return Earlier(f"the deployed {last.get('run')}", str(last.get("made_at")), score)


def _written_at(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusal(config: ShipConfig, planned: ShipPlan, judgement: Judgement) -> RefusedError:
    found = planned.answerer
    options = f" --run {found.run.name}" if found.run else "" if config.base == AUTO else f" --base {config.base}"
    fix = f"afs-mlx eval {config.target}{options}"
    if judgement.path is None:
        fix = "write the suite, or name an expert that has one"
    elif judgement.result and judgement.result.score:
        fix = "train again with another recipe or more rows" if found.run else "change the prompt, and evaluate again"
    return RefusedError(
        f"{planned.tag} is not deployed: {'; '.join(judgement.reasons)}",
        str(judgement.path or ""),
        f"{fix}; --force deploys it all the same, and records that",
    )


def _keep_record(config: ShipConfig, shipped: ShipResult, judgement: Judgement) -> Path:
    """Add the deployment to its tag's record, and what was overridden to the GGUF's manifest."""
    planned, exported, registered = shipped.plan, shipped.exported, shipped.registered
    found, result, overrode = planned.answerer, judgement.result, shipped.overrode
    path = record_path(config.workspace, planned.tag)
    before = read_json(path, "the record of deployments").get("deployments") if path.is_file() else []
    entry: dict[str, Any] = {
        **provenance("deploy"),
        "tag": planned.tag,
        "server": registered.server,
        "digest": registered.digest,
        "expert": found.expert.name if found.expert else "",
        "version": found.expert.version_name if found.expert else "",
        "run": found.run.name if found.run else "",
        "demo": is_demo(found),
        "base": result.base if result else found.base.identity,
        "inputs": result.inputs if result else [],
        "suite": result.suite if result else "",
        "result": input_file(judgement.path) if result and judgement.path else None,
        "score": result.score.model_dump() if result and result.score else None,
        "before": judgement.before.score.model_dump() if judgement.before else None,
        "gate": result.gate.model_dump() if result else None,
        "forced": bool(overrode),
        "overrode": overrode,
        "gguf": {"file": planned.gguf.name, "sha256": exported.sha256 if exported else ""},
    }
    write_json(path, {"schema_version": 1, "deployments": [*(before if isinstance(before, list) else []), entry]})
    manifest = read_json(shipped.manifest, "the GGUF's manifest")
    made = {"tag": planned.tag, "at": entry["made_at"], "forced": entry["forced"], "overrode": overrode}
    exports = manifest.get("exports")
    if isinstance(exports, dict) and isinstance(exports.get(planned.gguf.name), dict):
        exports[planned.gguf.name]["deployed"] = made
        write_json(shipped.manifest, manifest)
    return path
