"""A fused folder → a GGUF and a Modelfile in <fused>/gguf/, ready for llama.cpp, Ollama and LM Studio."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afs_mlx.core.errors import MissingError
from afs_mlx.core.files import read_json, write_json, write_text
from afs_mlx.core.manifest import provenance
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.sampling import Sampling

type GgufType = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True)
class ExportConfig:
    """What to export and what the Modelfile says."""

    model_folder: Path
    name: str
    file_type: GgufType
    system: str
    sampling: Sampling
    shots: tuple[Shot, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """The written files."""

    gguf: Path
    modelfile: Path
    size_bytes: int
    tensors: int
    sha256: str


def export(config: ExportConfig, on_tensor: Callable[[int, int], None]) -> ExportResult:
    """Write the GGUF, then the Modelfile and a manifest beside it. Raises AfsError before a half file gets its name."""
    if not (config.model_folder / "config.json").is_file():
        raise MissingError("there is no fused model", str(config.model_folder), "afs-mlx fuse EXPERT makes it")
    from afs_mlx.clients.modelfile import TEMPLATES, render_modelfile
    from afs_mlx.engine.bases.chat_format import chat_format, stop_texts
    from afs_mlx.engine.gguf.writer import export_gguf

    parent = config.model_folder / "manifest.json"
    target = config.model_folder / "gguf" / f"{config.name}-{config.file_type}.gguf"
    # The Modelfile first in memory: a prompt that cannot be written should not cost minutes of quantising.
    record = read_json(parent, "the fused model's manifest") if parent.is_file() else {}
    text = render_modelfile(
        f"./{target.name}",
        template=TEMPLATES[chat_format(config.model_folder)],
        system=config.system,
        stop=[*stop_texts(config.model_folder), *config.sampling.stop],
        parameters={
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            "num_ctx": config.sampling.context_tokens,
            "num_predict": config.sampling.max_tokens,
        },
        license_text=str(record.get("license") or ""),
        messages=[turn for shot in config.shots for turn in (("user", shot.user), ("assistant", shot.assistant))],
    )
    report = export_gguf(config.model_folder, target, config.file_type, name=config.name, on_tensor=on_tensor)
    modelfile = target.with_name("Modelfile")
    write_text(modelfile, text)
    exported = {
        **provenance("export gguf"),
        "name": config.name,
        "type": config.file_type,
        "gguf": {
            "file": target.name,
            "size_bytes": report.size_bytes,
            "sha256": report.sha256,
            "tensors": report.tensors,
        },
        "parent": record,
    }
    write_json(target.with_name("manifest.json"), exported)
    return ExportResult(target, modelfile, report.size_bytes, report.tensors, report.sha256)
