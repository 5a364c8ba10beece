"""data → splits: reads rows, refuses leaks, splits by group, writes train and valid with a manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import read_json, write_folder, write_json
from afs_mlx.core.jsonl import write_jsonl
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.dataset.reading import read_examples
from afs_mlx.dataset.split import Split, refuse_overlap, split
from afs_mlx.evaluation.suites import Suite, load_suite
from afs_mlx.schema.example import Example
from afs_mlx.schema.optimisation import normalised
from afs_mlx.snes.code_block import code_blocks

VALID_SHARE = 0.12


@dataclass(frozen=True)
class PrepareConfig:
    """`data` is a JSONL file to split, or a folder with train.jsonl and valid.jsonl; `suite` must not stand in it.

    Without `write` nothing is written: of several ranks one does it for all.
    """

    data: Path
    workspace: Workspace
    suite: Path | None = None
    seed: int = 0
    write: bool = True


@dataclass(frozen=True)
class PrepareResult:
    """The split rows and what artifacts record of them."""

    name: str
    train: list[Example]
    valid: list[Example]
    record: dict[str, Any]
    folder: Path | None


def prepare(config: PrepareConfig) -> PrepareResult:
    """Read, check and split. A folder is used as it is; a file's split is written to data/splits/<name>/.

    Raises AfsError for bad rows, for rows of the suite in the data, and for validation rows in the training rows.
    """
    suite = load_suite(config.suite) if config.suite else None
    if config.data.is_dir():
        return _folder(config, suite)
    if not config.data.exists():
        raise MissingError("there is no such data", str(config.data), "check --data, or the key `data` of the version")
    examples = read_examples(config.data)
    _refuse_suite_rows(examples, suite, config.data)
    rows = split(examples, VALID_SHARE, config.seed, str(config.data))
    folder = config.workspace.splits / config.data.stem
    _refuse_foreign(folder)
    record = {
        "inputs": [input_file(config.data, len(examples))],
        "suite": suite.name if suite else "",
        "seed": config.seed,
        "valid_share": VALID_SHARE,
        "train_rows": len(rows.train),
        "valid_rows": len(rows.valid),
        "duplicates_left_out": rows.duplicates,
    }
    if config.write:
        write_folder(folder, lambda target: _write(target, rows, record))
    return PrepareResult(config.data.stem, rows.train, rows.valid, record, folder)


def _refuse_foreign(folder: Path) -> None:
    """A split is replaced whole, so only a folder that was made here may be."""
    manifest = folder / "manifest.json"
    made_by = str(read_json(manifest, "the split's manifest").get("made_by")) if manifest.is_file() else ""
    if folder.exists() and not (made_by.startswith("afs-mlx ") and made_by.endswith(": prepare")):
        raise AfsError(
            "the split would replace a folder that afs-mlx did not make",
            str(folder),
            f"name that folder with --data {folder}, or rename it or your file",
        )


def _folder(config: PrepareConfig, suite: Suite | None) -> PrepareResult:
    files = [config.data / "train.jsonl", config.data / "valid.jsonl"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise AfsError(
            f"the folder has no {' and no '.join(missing)}", str(config.data), "add it, or name one JSONL file to split"
        )
    train, valid = (read_examples(file) for file in files)
    refuse_overlap(train, valid, str(config.data))
    _refuse_suite_rows(train, suite, files[0])
    _refuse_suite_rows(valid, suite, files[1])
    record = {
        "inputs": [input_file(files[0], len(train)), input_file(files[1], len(valid))],
        "suite": suite.name if suite else "",
        "train_rows": len(train),
        "valid_rows": len(valid),
    }
    return PrepareResult(config.data.name, train, valid, record, None)


def _refuse_suite_rows(examples: list[Example], suite: Suite | None, data: Path) -> None:
    """No question of the suite, and no routine of it, may stand in what is trained or validated on.

    A routine is found in any row's code blocks, and where it stands unfenced after the instruction.
    """
    if suite is None:
        return
    questions = {_words(case.question): case.id for case in suite.cases}
    routines = {normalised(str(case.facts["code"])): case.id for case in suite.cases if "code" in case.facts}
    found: list[str] = []
    for number, example in enumerate(examples, start=1):
        name = str(example.metadata.get("id") or f"row {number}")
        asked = [message.content for message in example.messages if message.role == "user"]
        case = next((questions[w] for text in asked if (w := _words(text)) in questions), None)
        case = case or next((routines[c] for text in asked for c in _routines(text) if c in routines), None)
        if case:
            found.append(f"{name} is case {case} of suite {suite.name}")
    if found:
        raise problems(
            found, "evaluation cases stand in the training data", str(data), "take these rows out of one of the two"
        )


def _routines(text: str) -> list[str]:
    blocks = code_blocks(text, allow_unterminated=True) or [text, text.partition("\n\n")[2]]
    return [normalised(block) for block in blocks]


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _write(folder: Path, rows: Split, record: dict[str, Any]) -> None:
    for name, examples in (("train", rows.train), ("valid", rows.valid)):
        write_jsonl(folder / f"{name}.jsonl", [_row(example) for example in examples])
    write_json(folder / "manifest.json", {**provenance("prepare"), **record})


def _row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": [message.as_row() for message in example.messages]}
    return {**row, "group": example.group} if example.group else row
