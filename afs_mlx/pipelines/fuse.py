"""Base + adapter → fused/<expert>/<run>/, a complete mlx-lm model folder, held against the two with a report."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afs_mlx.core.errors import AfsError, MissingError, RefusedError
from afs_mlx.core.files import read_json, sha256_of, write_folder, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.dataset.reading import read_examples
from afs_mlx.engine.fusing.options import Limits, StorageOptions
from afs_mlx.evaluation.suites import load_suite
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message

if TYPE_CHECKING:
    from afs_mlx.engine.fusing.agreement import Agreement
    from afs_mlx.engine.fusing.fusion import Fused

type Conversations = Sequence[Example | Sequence[Message]]


@dataclass(frozen=True)
class FuseConfig:
    """Which run to fuse; the base is the one it was trained on, its unquantised original where that is on disk.

    `suite` gives the questions where the run's validation rows are gone; `force` ships what `limits` hold back.
    """

    run: Run
    bases: Mapping[str, Base]
    workspace: Workspace
    storage: StorageOptions = field(default_factory=StorageOptions)
    limits: Limits = field(default_factory=Limits)
    suite: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Report:
    """The fused model held against base + adapter: `kl` in nats, `survival` by changed layer, `reason` if held back."""

    kl: float
    top1: float
    positions: int
    prompts: str
    survival: dict[str, float]
    reason: str

    @property
    def min_survival(self) -> float:
        """Of the layer that kept least; 1 where no weight matrix changed."""
        return min(self.survival.values(), default=1.0)

    @property
    def median_survival(self) -> float:
        """Over the changed layers."""
        return statistics.median(self.survival.values()) if self.survival else 1.0


@dataclass(frozen=True)
class FuseResult:
    """The model folder; `notice` says what a quantised base cost."""

    path: Path
    layers: int
    size_bytes: int
    dtype: str
    notice: str
    report: Report


def fuse(config: FuseConfig) -> FuseResult:
    """Fuse and write the folder whole; an earlier fused folder of the same run stays until the new one is complete.

    Raises RefusedError (exit 4) for a result beyond the limits, which then gets no folder, unless `force` is set.
    """
    from afs_mlx.engine.adapters.attaching import load_with_adapter
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.bases.location import choose_base, locate_original, weights_hash
    from afs_mlx.engine.fusing.agreement import agreement, expected
    from afs_mlx.engine.fusing.fusion import fuse as fuse_folders

    run = config.run
    if not run.usable:
        raise MissingError(f"the run holds no finished adapter ({run.status})", str(run.path), "train it again")
    base = choose_base(run.base, run.base, config.bases)
    catalogued = config.bases.get(run.base)
    source = (locate_original(catalogued) if catalogued else None) or base.folder
    target = config.workspace.fused / (run.expert or "adapter") / run.name
    conversations, prompts = _conversations(config)
    made: list[tuple[Fused, Report]] = []

    def fill(folder: Path) -> None:
        fused = fuse_folders(source, run.path, folder, config.storage)
        wanted = expected(load_with_adapter(source, run.path), conversations)
        report = _report(config, fused, agreement(wanted, load_base(folder)), prompts, target)
        made.append((fused, report))
        record = {
            **provenance("fuse"),
            "expert": run.expert,
            "version": run.record.get("version", ""),
            "demo": run.record.get("demo", False),
            "system": run.record.get("system", ""),
            "license": catalogued.license if catalogued else "",
            "base": {**base.identity, "fused_into_sha256": weights_hash(source)},
            "parent": {"run": run.name, **input_file(run.path / WEIGHTS)},
            **_stored_record(config, fused),
            "agreement": _agreement_record(config, report),
            "weights_sha256": _new_weights_hash(folder),
        }
        write_json(folder / "manifest.json", record)

    try:
        write_folder(target, fill)
    except RuntimeError as error:  # how mlx reports a failed read, or too little memory
        raise AfsError(f"mlx failed: {error}", str(source), "check the free memory; pull the base again") from error
    fused, report = made[0]
    notice = _notice(fused, run.base, config.storage)
    return FuseResult(target, fused.layers, fused.size_bytes, fused.dtype, notice, report)


def _report(config: FuseConfig, fused: "Fused", found: "Agreement", prompts: str, target: Path) -> Report:
    """Raises RefusedError for a result beyond the limits, unless it is forced."""
    report = Report(found.kl, found.top1, found.positions, prompts, fused.survival, "")
    reasons = []
    if report.median_survival < config.limits.min_survival:
        reasons.append(
            f"{report.median_survival:.0%} of the update survive, {config.limits.min_survival:.0%} are asked"
        )
    if found.top1 < config.limits.min_top1:
        reasons.append(f"{found.top1:.0%} of the tokens agree, {config.limits.min_top1:.0%} are asked")
    if not reasons:
        return report
    reason = "; ".join(reasons) + f" ({found.positions} positions, {prompts})"
    if not config.force:
        changed = {"same": "--changed 8 or 16", "8": "--changed 16, or --quantize none"}
        more = (changed.get(config.storage.changed) if fused.dequantised else None) or "--quantize 8 or none"
        raise RefusedError(
            f"the fused model is held back: {reason}",
            str(target),
            f"keep more bits ({more}); --force ships it all the same",
        )
    return Report(found.kl, found.top1, found.positions, prompts, fused.survival, reason)


def _conversations(config: FuseConfig) -> tuple[Conversations, str]:
    """What to compare on and where it is from: the run's validation rows, the suite's questions, or a few."""
    from afs_mlx.engine.fusing.agreement import BUILT_IN

    system, rows = str(config.run.record.get("system") or ""), config.limits.rows
    valid = _validation_rows(config)
    if valid is not None:
        examples = _spread(read_examples(valid), rows)
        return [example.with_system(system) for example in examples], config.workspace.shown(valid)
    opening = [Message(role="system", content=system)] if system else []
    if config.suite is not None:
        suite = load_suite(config.suite)
        questions, source = [case.question for case in _spread(suite.cases, rows)], f"suite {suite.name}"
    else:
        questions, source = list(BUILT_IN[:rows]), "built-in questions"
    return [[*opening, Message(role="user", content=question)] for question in questions], source


def _validation_rows(config: FuseConfig) -> Path | None:
    """The split that the run was validated on, if it is here and has not changed since."""
    data = config.run.record.get("data")
    inputs = data.get("inputs") if isinstance(data, dict) else None
    if not isinstance(inputs, list) or not inputs or not all(isinstance(entry, dict) for entry in inputs):
        return None
    for valid in sorted(config.workspace.splits.glob("*/valid.jsonl")):
        manifest = valid.with_name("manifest.json")
        split = read_json(manifest, "the split's manifest") if manifest.is_file() else {}
        if split.get("inputs") == inputs or sha256_of(valid) == inputs[-1].get("sha256"):
            return valid
    return None


def _spread[Row](rows: Sequence[Row], count: int) -> list[Row]:
    """Up to `count` rows, evenly over all of them."""
    return [rows[number * len(rows) // count] for number in range(count)] if len(rows) > count else list(rows)


def _stored_record(config: FuseConfig, fused: "Fused") -> dict[str, Any]:
    bits = list(fused.changed_bits.values())
    return {
        "storage": config.storage.model_dump(mode="json"),
        "dtype": fused.dtype,
        "dequantised_base": fused.dequantised,
        "quantization": fused.quantisation,
        "layers_changed": fused.layers,
        "layers_kept": fused.kept,
        "changed_bits": {str(width): bits.count(width) for width in sorted(set(bits))},
    }


def _agreement_record(config: FuseConfig, report: Report) -> dict[str, Any]:
    survival = {path: round(value, 6) for path, value in report.survival.items()}
    return {
        "prompts": report.prompts,
        "positions": report.positions,
        "kl": report.kl,
        "top1": report.top1,
        "survival": {"min": report.min_survival, "median": report.median_survival, "layers": survival},
        "limits": config.limits.model_dump(),
        "passed": not report.reason,
        "reason": report.reason,
        "forced": bool(report.reason),
    }


def _notice(fused: "Fused", base: str, storage: StorageOptions) -> str:
    """What it costs that only a quantised base was there."""
    if not fused.dequantised:
        return ""
    if storage.quantize == "none":
        cost = f"it was dequantised and kept in {fused.dtype}, which takes the room of 16 bits and adds no precision"
    elif fused.extra_bytes:
        cost = (
            f"the {fused.layers} changed layers are kept at {max(fused.changed_bits.values())} bits, "
            f"{fused.extra_bytes / 1e6:.0f} MB more, since their own grid would swallow small updates"
        )
    else:
        cost = f"the {fused.layers} changed layers stay on its grid, which adds noise where the update must show"
    return f"only the quantised {base} is on this machine: {cost}. For the original: afs-mlx pull {base} --original"


def _new_weights_hash(folder: Path) -> str:
    """What `weights_hash` will say of the finished folder; not through its cache, for this path is about to vanish."""
    lines = [f"{path.name}:{sha256_of(path)}" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
