"""A model folder → a verified GGUF, a Modelfile and a manifest, ready for llama.cpp, Ollama and LM Studio."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import atomic_path, read_json, sha256_of, write_json, write_text
from afs_mlx.core.manifest import now, provenance
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.gguf import GgufType as GgufType
from afs_mlx.schema.sampling import Sampling
from afs_mlx.schema.verification import Check, Verification, Verify

if TYPE_CHECKING:
    from afs_mlx.engine.gguf.writer import GgufReport

# Beside the weights, what decides how the file answers.
SOURCE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class ExportConfig:
    """What to export and what the Modelfile says.

    The GGUF lies in the model folder's own gguf/, or in `out_folder` (for a base that is not ours to write into), the
    Modelfile beside it, or at `modelfile` where several experts share one GGUF; `write_modelfile` leaves it to the
    caller. `license_text` stands in for a folder without a manifest. `verify` is how much is checked.
    """

    model_folder: Path
    name: str
    file_type: GgufType
    system: str
    sampling: Sampling
    shots: tuple[Shot, ...] = ()
    out_folder: Path | None = None
    modelfile: Path | None = None
    write_modelfile: bool = True
    license_text: str = ""
    verify: Verify = "quick"

    @property
    def gguf(self) -> Path:
        """Where the file will lie."""
        return gguf_path(self.model_folder, self.name, self.file_type, self.out_folder)


@dataclass(frozen=True)
class ExportResult:
    """The written files, and what the checks found; None where none were asked for."""

    gguf: Path
    modelfile: Path
    size_bytes: int
    tensors: int
    sha256: str
    verification: Verification | None = None


def gguf_path(model_folder: Path, name: str, file_type: GgufType, out_folder: Path | None = None) -> Path:
    """The one name of a GGUF on disk."""
    return (out_folder or model_folder / "gguf") / f"{name}-{file_type}.gguf"


def export(
    config: ExportConfig,
    on_tensor: Callable[[int, int], None],
    on_check: Callable[[Check], None] = lambda check: None,
) -> ExportResult:
    """Write the GGUF, verify it, then write the Modelfile and the manifest.

    `on_tensor` hears (written, total), `on_check` of each check as it ends. The file gets its name only when no check
    has failed; else it is removed and AfsError lists what failed. What was there before stays until then.
    """
    if not (config.model_folder / "config.json").is_file():
        raise MissingError("there is no fused model", str(config.model_folder), "afs-mlx fuse EXPERT makes it")
    target = config.gguf
    modelfile = config.modelfile or target.with_name("Modelfile")
    parent = _record(config.model_folder / "manifest.json")
    # The Modelfile first in memory: a prompt that cannot be written should not cost minutes of quantising.
    text = _modelfile_text(config, parent, modelfile) if config.write_modelfile else ""
    source = _source(config.model_folder)
    with atomic_path(target) as temporary:
        report = _written(config, temporary, on_tensor)
        verification = _verified(config, temporary, on_check)
    if config.write_modelfile:
        write_text(modelfile, text)
    _write_manifest(config, report, verification, source, parent)
    return ExportResult(target, modelfile, report.size_bytes, report.tensors, report.sha256, verification)


def current_export(
    model_folder: Path,
    name: str,
    file_type: GgufType,
    out_folder: Path | None = None,
    modelfile: Path | None = None,
) -> ExportResult | None:
    """The export that is on disk and still that of `model_folder`, None where it has to be made.

    Held against weights, tokenizer and configuration by their hashes. Hashes of large files are kept beside size and
    time of change, so nothing large is read unless a file was touched.
    """
    target = gguf_path(model_folder, name, file_type, out_folder)
    entry = _entries(target.with_name("manifest.json")).get(target.name)
    if entry is None or not target.is_file() or entry.get("source") != _source(model_folder):
        return None
    stat = target.stat()
    if stat.st_size != entry.get("size_bytes"):
        return None
    if stat.st_mtime_ns != entry.get("mtime_ns") and sha256_of(target) != entry.get("sha256"):
        return None
    beside = modelfile or target.with_name("Modelfile")
    try:
        checks = entry.get("verification")
        verification = Verification.model_validate(checks) if checks is not None else None
        return ExportResult(target, beside, stat.st_size, int(entry["tensors"]), str(entry["sha256"]), verification)
    except (ValidationError, KeyError, TypeError, ValueError):  # a manifest that somebody changed
        return None


def _written(config: ExportConfig, temporary: Path, on_tensor: Callable[[int, int], None]) -> "GgufReport":
    from afs_mlx.engine.gguf.writer import export_gguf

    try:
        return export_gguf(config.model_folder, temporary, config.file_type, name=config.name, on_tensor=on_tensor)
    except AfsError as error:
        error.where = error.where.replace(str(temporary), str(config.gguf))  # the name that a person knows
        raise


def _verified(config: ExportConfig, temporary: Path, on_check: Callable[[Check], None]) -> Verification | None:
    if config.verify == "none":
        return None
    from afs_mlx.engine.gguf.verification import demand, verify_gguf

    verification = verify_gguf(temporary, config.model_folder, config.file_type, depth=config.verify, on_event=on_check)
    demand(verification, config.gguf)
    return verification


def _modelfile_text(config: ExportConfig, parent: dict[str, Any], modelfile: Path) -> str:
    from afs_mlx.clients.ollama.content import content_for, modelfile_text
    from afs_mlx.engine.bases.chat_format import chat_format, stop_texts
    from afs_mlx.engine.bases.default_system import default_system

    content = content_for(
        chat_format=chat_format(config.model_folder),
        stop_texts=stop_texts(config.model_folder),
        system=config.system,
        sampling=config.sampling,
        shots=config.shots,
        license_text=str(parent.get("license") or config.license_text),
        default_system=default_system(config.model_folder),
    )
    relative = config.gguf.absolute().relative_to(modelfile.absolute().parent, walk_up=True)
    return modelfile_text(content, f"./{relative.as_posix()}")


def _source(model_folder: Path) -> dict[str, Any]:
    """What a GGUF is made from, by hash."""
    from afs_mlx.engine.bases.location import weights_hash

    files = {name: sha256_of(path) for name in SOURCE_FILES if (path := model_folder / name).is_file()}
    return {"weights_sha256": weights_hash(model_folder), "files": files}


def _write_manifest(
    config: ExportConfig,
    report: "GgufReport",
    verification: Verification | None,
    source: dict[str, Any],
    parent: dict[str, Any],
) -> None:
    """The newest export at the top, under `exports` every one that still lies here."""
    target = config.gguf
    path = target.with_name("manifest.json")
    checks = verification.model_dump(mode="json") if verification else None
    file = {"size_bytes": report.size_bytes, "sha256": report.sha256, "tensors": report.tensors}
    entry = {
        "name": config.name,
        "type": config.file_type,
        "made_at": now(),
        **file,
        "mtime_ns": target.stat().st_mtime_ns,
        "source": source,
        "verification": checks,
    }
    others = {name: value for name, value in _entries(path).items() if target.with_name(name).is_file()}
    manifest = {
        **provenance("export gguf"),
        "name": config.name,
        "type": config.file_type,
        "gguf": {"file": target.name, **file},
        "weights_sha256": source["weights_sha256"],
        "source": source,
        "verification": checks,
        "parent": parent,
        "exports": {**others, target.name: entry},
    }
    write_json(path, manifest)


def _entries(manifest: Path) -> dict[str, dict[str, Any]]:
    """The exports that a manifest tells of; a damaged manifest tells of none."""
    try:
        exports = _record(manifest).get("exports")
    except AfsError:
        return {}
    if not isinstance(exports, dict):
        return {}
    return {name: entry for name, entry in exports.items() if isinstance(entry, dict) and Path(name).name == name}


def _record(path: Path) -> dict[str, Any]:
    return read_json(path, "the model's manifest") if path.is_file() else {}
