"""data → splits: whole files, a manifest, and no evaluation case among the rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, ExitCode, MissingError
from afs_mlx.core.files import sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.dataset.reading import read_examples
from afs_mlx.pipelines import prepare as module
from afs_mlx.pipelines.prepare import PrepareConfig, PrepareResult, prepare
from afs_mlx.schema.optimisation import OptimisationPair

HEADER = 'title = "t"\nscorer = "optimisation"\ncases = "s.jsonl"\nmeasures = "m"\n'
CASE: dict[str, Any] = {
    "id": "opt-1",
    "family": "stz",
    "goal": "bytes",
    "entry": {"m": 8, "x": 8},
    "live": [],
    "code": "  lda #$00\n  sta $10\n  rts",
    "better": "  stz $10\n  rts",
    "reason": "r",
    "not_when": "n",
}


def chat(question: str, answer: str = "an answer", **values: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **values}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    write_rows(tmp_path / "s.jsonl", [CASE, {**CASE, "id": "opt-2", "code": "  ldx #$00\n  stx $12\n  stx $13"}])
    path = tmp_path / "s.toml"
    path.write_text(HEADER)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [chat(f"question {n}", group=f"g{n // 2}" if n < 20 else "") for n in range(60)]
    return write_rows(tmp_path / "my-set.jsonl", rows)


def folder_of(tmp_path: Path, train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> Path:
    write_rows(tmp_path / "folder" / "train.jsonl", train)
    return write_rows(tmp_path / "folder" / "valid.jsonl", valid).parent


def test_a_file_becomes_a_folder_with_a_manifest(workspace: Workspace, data: Path, suite: Path) -> None:
    result = prepare(PrepareConfig(data, workspace, suite, seed=3))
    folder = workspace.splits / "my-set"
    assert (result.folder, result.name) == (folder, "my-set")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.jsonl", "valid.jsonl"]
    assert [path.name for path in workspace.splits.iterdir()] == ["my-set"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == [
        {"file": "my-set.jsonl", "sha256": sha256_of(data), "size_bytes": data.stat().st_size, "rows": 60}
    ]
    assert (manifest["seed"], manifest["suite"], manifest["valid_share"]) == (3, "s", 0.12)
    assert (manifest["train_rows"], manifest["valid_rows"]) == (len(result.train), len(result.valid))
    assert manifest["train_rows"] + manifest["valid_rows"] == 60
    assert manifest["made_by"].endswith(": prepare")
    assert {key: manifest[key] for key in result.record} == result.record


def test_what_was_written_is_what_was_split(workspace: Workspace, data: Path) -> None:
    result = prepare(PrepareConfig(data, workspace))
    for name, examples in (("train", result.train), ("valid", result.valid)):
        again = read_examples(workspace.splits / "my-set" / f"{name}.jsonl")
        assert [(e.messages, e.group) for e in again] == [(e.messages, e.group) for e in examples]


def test_the_written_folder_can_be_given_as_data(workspace: Workspace, data: Path, suite: Path) -> None:
    first = prepare(PrepareConfig(data, workspace, suite))
    assert first.folder is not None
    again = prepare(PrepareConfig(first.folder, workspace, suite))
    assert [e.messages for e in again.train] == [e.messages for e in first.train]
    assert [e.messages for e in again.valid] == [e.messages for e in first.valid]
    assert again.folder is None


def test_preparing_twice_gives_the_same_bytes(workspace: Workspace, data: Path) -> None:
    def contents() -> list[bytes]:
        prepare(PrepareConfig(data, workspace))
        return [(workspace.splits / "my-set" / f"{name}.jsonl").read_bytes() for name in ("train", "valid")]

    assert contents() == contents()


def test_a_group_stays_on_one_side(workspace: Workspace, data: Path) -> None:
    for seed in range(5):
        result = prepare(PrepareConfig(data, workspace, seed=seed))
        assert not {e.group for e in result.train if e.group} & {e.group for e in result.valid}


def test_duplicates_are_left_out_and_counted(workspace: Workspace, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [chat(f"Question {n % 10}") for n in range(25)])
    result = prepare(PrepareConfig(data, workspace))
    assert result.record["duplicates_left_out"] == 15
    assert result.record["inputs"][0]["rows"] == 25
    assert len(result.train) + len(result.valid) == 10


def test_a_write_that_fails_leaves_the_old_split(
    workspace: Workspace, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(PrepareConfig(data, workspace))
    before = {path.name: path.read_bytes() for path in (workspace.splits / "my-set").iterdir()}

    def full(*_: object) -> None:
        raise AfsError("the disk is full")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(AfsError, match="the disk is full"):
        prepare(PrepareConfig(data, workspace, seed=9))
    assert {path.name: path.read_bytes() for path in (workspace.splits / "my-set").iterdir()} == before
    assert [path.name for path in workspace.splits.iterdir()] == ["my-set"]


def test_data_that_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no such data") as caught:
        prepare(PrepareConfig(tmp_path / "none.jsonl", workspace))
    assert caught.value.code is ExitCode.MISSING


def test_bad_rows_are_named_and_nothing_is_written(workspace: Workspace, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [chat("a"), {"promt": 1}, chat("b", answer="")])
    with pytest.raises(AfsError, match=r"bad rows \(2 problems\)\n  line 2: .*\n  line 3: "):
        prepare(PrepareConfig(data, workspace))
    assert not workspace.splits.exists()


def test_a_single_row_cannot_be_split(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="cannot be split"):
        prepare(PrepareConfig(write_rows(tmp_path / "d.jsonl", [chat("a")]), workspace))


def test_a_folder_is_used_as_it_is(workspace: Workspace, tmp_path: Path, suite: Path) -> None:
    folder = folder_of(tmp_path, [chat("a"), chat("b")], [chat("c")])
    result = prepare(PrepareConfig(folder, workspace, suite))
    assert [e.messages[0].content for e in (*result.train, *result.valid)] == ["a", "b", "c"]
    assert [entry["rows"] for entry in result.record["inputs"]] == [2, 1]
    assert not workspace.splits.exists()


def test_a_folder_that_lacks_a_file(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(AfsError, match=r"the folder has no train\.jsonl and no valid\.jsonl"):
        prepare(PrepareConfig(tmp_path / "folder", workspace))
    write_rows(tmp_path / "folder" / "train.jsonl", [chat("a")])
    with pytest.raises(AfsError, match=r"the folder has no valid\.jsonl"):
        prepare(PrepareConfig(tmp_path / "folder", workspace))


def test_validation_rows_that_are_trained_on_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="1 of 2 validation rows are training rows too"):
        prepare(PrepareConfig(folder_of(tmp_path, [chat("a"), chat("b")], [chat("c"), chat("B ")]), workspace))
    with pytest.raises(AfsError, match="1 of 1 validation rows"):
        prepare(PrepareConfig(folder_of(tmp_path, [chat("a", group="p")], [chat("c", group="p")]), workspace))


QUESTION = OptimisationPair.model_validate(CASE).question()
LEAKS: dict[str, dict[str, Any]] = {
    "the case itself": CASE,
    "its routine for another goal": {**CASE, "id": "din-9", "goal": "cycles", "better": "  stz $10\n  nop\n  rts"},
    "its question": chat(QUESTION, "another answer"),
    "its question in other case and spacing": {"prompt": QUESTION.upper().replace("\n", "\n\n"), "completion": "x"},
    "its routine in a block": chat("Improve:\n```asm\nLDA #$00 ; clear\n STA $10\n\n RTS\n```\nPlease."),
    "its routine as the input": {"instruction": "Improve this.", "input": CASE["code"], "output": "x"},
    "its routine alone": {"prompt": CASE["code"], "completion": "x"},
    "its routine in a later turn": {
        "messages": [*chat("hello")["messages"], *chat(f"```\n{CASE['code']}\n```")["messages"]]
    },
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_case_of_the_suite_in_the_data_is_refused(
    workspace: Workspace, tmp_path: Path, suite: Path, leak: str
) -> None:
    data = write_rows(tmp_path / "d.jsonl", [chat("a"), chat("b"), LEAKS[leak], chat("c")])
    with pytest.raises(AfsError, match="evaluation cases stand in the training data") as caught:
        prepare(PrepareConfig(data, workspace, suite))
    name = LEAKS[leak].get("id", "row 3")
    assert caught.value.what.splitlines()[1:] == [f"  {name} is case opt-1 of suite s"]
    assert caught.value.where == str(data)
    assert not workspace.splits.exists()


def test_all_leaks_come_together_and_name_their_file(workspace: Workspace, tmp_path: Path, suite: Path) -> None:
    second = chat("```asm\n ldx #$00\n stx $12\n stx $13\n```")
    data = write_rows(tmp_path / "d.jsonl", [chat("a"), LEAKS["its question"], second])
    with pytest.raises(AfsError, match=r"\(2 problems\)\n  row 2 is case opt-1 .*\n  row 3 is case opt-2 "):
        prepare(PrepareConfig(data, workspace, suite))
    folder = folder_of(tmp_path, [chat("a")], [chat("b"), second])
    with pytest.raises(AfsError, match=r"\n  row 2 is case opt-2 ") as caught:
        prepare(PrepareConfig(folder, workspace, suite))
    assert caught.value.where == str(folder / "valid.jsonl")


def test_without_a_suite_nothing_is_compared(workspace: Workspace, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [chat("a"), chat(QUESTION)])
    assert prepare(PrepareConfig(data, workspace)).record["suite"] == ""


def test_what_only_resembles_a_case_is_no_leak(workspace: Workspace, tmp_path: Path, suite: Path) -> None:
    longer = chat("```asm\n  lda #$00\n  sta $10\n  sta $11\n  rts\n```")
    other = chat("```asm\n  lda #$00\n  sta $20\n  rts\n```")
    answered = chat("Write a routine that clears $10.", f"```asm\n{CASE['code']}\n```")
    data = write_rows(tmp_path / "d.jsonl", [longer, other, answered, chat("rts")])
    result = prepare(PrepareConfig(data, workspace, suite))
    assert isinstance(result, PrepareResult)
    assert len(result.train) + len(result.valid) == 4


def test_a_folder_that_was_not_made_here_is_not_replaced(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    own = workspace.splits / "mine"
    own.mkdir(parents=True)
    (own / "test.jsonl").write_text("precious")
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(AfsError, match="did not make"):
        prepare(PrepareConfig(data, workspace))
    assert (own / "test.jsonl").read_text() == "precious"
    (own / "test.jsonl").unlink()
    own.rmdir()
    prepare(PrepareConfig(data, workspace))
    prepare(PrepareConfig(data, workspace))


@pytest.mark.parametrize("made_by", ["a person", "afs-mlx 0.1.0: fuse", "", None])
def test_another_manifest_does_not_give_a_folder_away(workspace: Workspace, data: Path, made_by: str | None) -> None:
    own = workspace.splits / "my-set"
    own.mkdir(parents=True)
    (own / "manifest.json").write_text(json.dumps({"made_by": made_by}))
    with pytest.raises(AfsError, match="did not make"):
        prepare(PrepareConfig(data, workspace))
    assert [path.name for path in own.iterdir()] == ["manifest.json"]
