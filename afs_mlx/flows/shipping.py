"""An expert → (fuse →) GGUF → Ollama: what `export ollama` and `deploy` share.

What is on disk and still fits is not made again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from afs_mlx.clients.ollama.content import modelfile_or_note
from afs_mlx.clients.ollama.events import RegisterEvent
from afs_mlx.core.files import write_text
from afs_mlx.flows.shipping_plan import RECORD as RECORD
from afs_mlx.flows.shipping_plan import ShipConfig as ShipConfig
from afs_mlx.flows.shipping_plan import ShipPlan, plan
from afs_mlx.pipelines.export import ExportConfig, ExportResult, current_export, export
from afs_mlx.pipelines.fuse import FuseConfig, FuseResult, fuse
from afs_mlx.pipelines.register import RegisterConfig, RegisterResult, check_tag, ready, register
from afs_mlx.schema.sampling import Sampling
from afs_mlx.schema.verification import Check

STAGES = ("fuse", "export", "register")


@dataclass(frozen=True)
class StageStarted:
    """One of STAGES begins; what is on disk already has no stage."""

    name: str


@dataclass(frozen=True)
class TensorWritten:
    """The export has come this far."""

    done: int
    total: int


@dataclass(frozen=True)
class Checked:
    """One check of the new GGUF has ended."""

    check: Check


type ShipEvent = StageStarted | TensorWritten | Checked | RegisterEvent


@dataclass(frozen=True)
class ShipResult:
    """`fused` is None where nothing had to be fused; a dry run makes nothing, `exported` is then what is there.

    `overrode` is the config's, and what fusing was forced over.
    """

    plan: ShipPlan
    fused: FuseResult | None
    exported: ExportResult | None
    registered: RegisterResult
    reused: bool
    overrode: str

    @property
    def manifest(self) -> Path:
        """The GGUF's, which says what it was made of."""
        return self.plan.gguf.with_name("manifest.json")


def ship(config: ShipConfig, on_event: Callable[[ShipEvent], None]) -> ShipResult:
    """Fuse, export and register what is not done yet; every step leaves a whole artifact when a later one fails.

    Raises what the pipelines raise: MissingError without the model or a server, RefusedError for a name that is not
    ours or a fused model that agrees too little.
    """
    planned = plan(config)
    check_tag(planned.tag)
    found = current(planned)
    if config.dry_run:
        return ShipResult(
            planned, None, found, _register(config, planned, found, on_event), bool(found), config.overrode
        )
    fused, reused = None, found is not None
    if not reused:  # minutes of work: a server that is off or a name that is taken is said before it
        ready(planned.tag, config.workspace.fused / RECORD, host=config.host, force=config.force)
    if planned.fuse and planned.answerer.run is not None:
        on_event(StageStarted("fuse"))
        fused = _fuse(config, planned)
        config = replace(config, overrode="; ".join(part for part in (config.overrode, fused.report.reason) if part))
    if found is None:
        on_event(StageStarted("export"))
        found = _export(config, planned, on_event)
    _write_modelfile(planned)
    on_event(StageStarted("register"))
    registered = _register(config, planned, found, on_event)
    return ShipResult(planned, fused, found, registered, reused, config.overrode)


def current(planned: ShipPlan) -> ExportResult | None:
    """The GGUF on disk where it is still that of the model folder, None where it has to be written."""
    if planned.fuse:
        return None
    return current_export(planned.model_folder, planned.name, planned.file_type, planned.gguf.parent, planned.modelfile)


def _export(config: ShipConfig, planned: ShipPlan, on_event: Callable[[ShipEvent], None]) -> ExportResult:
    expert = planned.answerer.expert
    version = expert.version if expert else None
    return export(
        ExportConfig(
            model_folder=planned.model_folder,
            name=planned.name,
            file_type=planned.file_type,
            system=planned.answerer.system,
            sampling=expert.sampling if expert else Sampling(),
            shots=version.shots if version else (),
            out_folder=planned.gguf.parent,
            modelfile=planned.modelfile,
            license_text=planned.content.license_text,
            write_modelfile=False,
            verify=config.verify,
        ),
        lambda done, total: on_event(TensorWritten(done, total)),
        lambda check: on_event(Checked(check)),
    )


def _write_modelfile(planned: ShipPlan) -> None:
    """The one of now: the prompt may have changed since the GGUF was written, and a bare base's file is shared."""
    text, _ = modelfile_or_note(planned.content, planned.gguf_from_modelfile)
    write_text(planned.modelfile, text)


def _fuse(config: ShipConfig, planned: ShipPlan) -> FuseResult:
    run = planned.answerer.require_run()
    expert = planned.answerer.expert
    relative = f"evals/suites/{expert.version.suite}.toml" if expert and expert.version and expert.version.suite else ""
    suite = config.workspace.find_file(relative) if relative and config.workspace.has_file(relative) else None
    return fuse(FuseConfig(run, config.catalog.bases, config.workspace, suite=suite, force=config.force))


def _register(
    config: ShipConfig, planned: ShipPlan, exported: ExportResult | None, on_event: Callable[[ShipEvent], None]
) -> RegisterResult:
    expert, run = planned.answerer.expert, planned.answerer.run
    return register(
        RegisterConfig(
            gguf=planned.gguf,
            sha256=exported.sha256 if exported else "",
            tag=planned.tag,
            content=planned.content,
            gguf_from_modelfile=planned.gguf_from_modelfile,
            record=config.workspace.fused / RECORD,
            host=config.host,
            expert=expert.label if expert else "",
            run=run.name if run else planned.answerer.base.label,
            overrode=config.overrode,
            dry_run=config.dry_run,
            smoke=config.smoke,
            force=config.force,
        ),
        on_event,
    )
