"""`afs-mlx train --plan` as a person types it: text, JSON, what can be typed next, exit codes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from afs_mlx.cli.app import app
from afs_mlx.cli.render.plan import as_json, show
from afs_mlx.core.errors import ExitCode
from afs_mlx.core.memory import Memory
from afs_mlx.engine.training.planning import Forecast, Proposal, Room
from afs_mlx.pipelines.plan import PlanResult
from afs_mlx.schema.recipe import Recipe

GB = 10**9
ROWS = [{"instruction": f"Clear address ${i:02X}.", "output": f"```asm\n  stz ${i:02x}\n```"} for i in range(16, 32)]
QUICK = ["--set", "epochs=1", "--set", "layers=1", "--set", "rank=2", "--set", "sample_tokens=4"]
MACHINE = Memory(16 * GB, 8 * GB, 2 * GB, 0, 0, limited=True)
PROPOSALS = (
    Proposal({"grad_checkpoint": True}, 5 * GB, 5 * GB + GB // 2, 700.0, "fits", False),
    Proposal({"layers": 8, "speed.head_chunk": 31}, 6 * GB, 6 * GB + GB // 2, 300.0, "tight", True),
)
FORECAST = Forecast(
    peak_bytes=9 * GB,
    needed_bytes=9 * GB + GB // 2,
    time_s=600.0,
    memory_parts={"resident": 3 * GB, "kept outputs": 0, "activations": 6 * GB},
    time_parts={"blocks": 500.0, "head": 98.0, "samples": 2.0},
    room=Room(8 * GB, 2 * GB, 7 * GB),
    verdict="swaps",
    disk_bytes=3 * GB,
    proposals=PROPOSALS,
)
RESULT = PlanResult("qwen", False, "", FORECAST, True, 3, 120, MACHINE)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def asked(rows: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["train", "din", "--base", "tiny-qwen2", "--data", str(rows), *QUICK, *words])


def shown(result: PlanResult, capsys: pytest.CaptureFixture[str]) -> str:
    show(result)
    return capsys.readouterr().out


def test_a_plan_says_time_memory_machine_and_verdict(rows: Path, tmp_path: Path) -> None:
    result = asked(rows, "--plan")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.match(r"time     about \d+ s for \d+ steps? \(", lines[0])
    assert re.match(r"memory   \d+ MB at most", lines[1])
    assert any(re.match(r"machine  .+ memory.*, .+ can be had, ", line) for line in lines)
    assert "it fits" in lines
    assert "measuring batch 1 of" in result.stderr
    assert not (tmp_path / "workspace").exists()  # nothing was prepared there, no run was made


def test_a_plan_as_json(rows: Path) -> None:
    result = asked(rows, "--plan", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema_version"] == 1
    assert (found["base"], found["verdict"], found["calibrated"]) == ("tiny-qwen2", "fits", True)
    assert found["time_s"] == pytest.approx(sum(found["time_parts_s"].values()))
    assert found["peak_bytes"] == pytest.approx(sum(found["memory_parts_bytes"].values()), abs=10)
    assert found["machine"]["total_bytes"] == Memory.here().total_bytes


def test_a_plan_beside_hosts_plans_and_starts_no_rank(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("afs_mlx.core.ranks.launch", lambda *arguments, **options: started.append(arguments) or 0)
    result = asked(rows, "--plan", "--hosts", "2")
    assert result.exit_code == ExitCode.OK, result.output
    assert "memory" in result.output
    assert started == []


@pytest.mark.parametrize(("force", "code"), [((), ExitCode.REFUSED), (("--force",), ExitCode.OK)])
def test_what_cannot_run_here_exits_with_4(
    rows: Path, monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...], code: ExitCode
) -> None:
    verdict = replace(RESULT, forecast=replace(FORECAST, verdict="impossible"))
    monkeypatch.setattr("afs_mlx.pipelines.plan.plan", lambda config, on_event: verdict)
    result = asked(rows, "--plan", *force)
    assert result.exit_code == code, result.output
    assert "it cannot run here" in result.stdout
    assert "--set grad_checkpoint=true" in result.stdout


def test_a_training_that_cannot_run_here_does_not_start(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Memory, "here", lambda: Memory(16 * GB, GB // 100, 0, 0, 0))
    monkeypatch.setattr("afs_mlx.engine.training.planning.checking.process_bytes", lambda: 0)
    refused = asked(rows)
    assert refused.exit_code == ExitCode.REFUSED, refused.output
    assert "this machine can give" in refused.stderr
    assert "--force" in refused.stderr
    assert not (tmp_path / "workspace" / "adapters").exists()
    forced = asked(rows, "--force")
    assert forced.exit_code == 0, forced.output
    assert "ended for lack of memory" in forced.stderr.replace("\n", " ")


def test_parts_are_shown_by_size_and_small_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(RESULT, capsys)
    assert "about 10 min 00 s for 120 steps (blocks 8 min 20 s, head 1 min 38 s)" in text
    assert "memory   9.5 GB at most" in text
    order = ["activations", "base, adapter, optimizer", "Python and the allocator", "3.0 GB on disk"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "kept outputs of frozen blocks" not in text
    assert "16 GB memory (a limit of its control group), 8.0 GB can be had, 2.0 GB of swap left" in text
    assert "Metal's working set 7.0 GB" in text
    assert "it would swap" in text


def test_proposals_can_be_typed_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(RESULT, capsys)
    assert "  --set grad_checkpoint=true  (5.5 GB, 11 min 40 s)\n" in text
    assert "  --set layers=8 --set speed.head_chunk=31  (6.5 GB, 5 min 00 s, tight, learns otherwise)\n" in text
    for proposal in PROPOSALS:
        for key, value in (word.split("=") for word in proposal.settings.split() if word != "--set"):
            table: Any = Recipe()
            for name in key.split("."):
                table = getattr(table, name)
            assert type(table)(json.loads(value)) == json.loads(value)


def test_without_a_probe_no_time_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    counted = replace(RESULT, calibrated=False, probed=0)
    text = shown(counted, capsys)
    assert "time     unknown" in text
    assert "--set grad_checkpoint=true  (5.5 GB, 1.2 × the time)" in text
    found = as_json(counted)
    assert found["time_s"] is None
    assert found["proposals"][0]["time_s"] is None
    assert found["proposals"][0]["settings"] == "--set grad_checkpoint=true"


def test_where_nothing_helps_the_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(replace(RESULT, forecast=replace(FORECAST, proposals=())), capsys)
    assert "nothing in the recipe brings it down far enough" in text
    fits = replace(FORECAST, verdict="fits", proposals=())
    assert shown(replace(RESULT, forecast=fits), capsys).rstrip().endswith("it fits")
