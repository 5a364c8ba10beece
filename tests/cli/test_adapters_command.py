"""`adapters` and `export peft` as a person types them: text, JSON, refusals, and no mlx."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.cli.render.adapters import ranges
from afs_mlx.core.paths import Workspace

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "peft"
QV, SEVEN = str(GOLDEN / "qv-r4"), str(GOLDEN / "seven-r8-rslora")
PROBE = """
import sys
from afs_mlx.cli.app import main
sys.argv = ["afs-mlx", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    code = error.code
print("HEAVY", sorted({n.partition(".")[0] for n in sys.modules} & {"mlx", "mlx_lm", "torch"}), code, file=sys.stderr)
"""


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def parsed(*words: str) -> dict[str, Any]:
    value = json.loads(run(*words, "--json"))
    assert isinstance(value, dict)
    assert value["schema_version"] == 1
    return value


def failed(code: int, *words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture
def din() -> Path:
    """The golden adapter as a run of din."""
    return Path(run("convert", QV, "--expert", "din@v2").strip())


def test_inspect_tells_settings_base_and_layers() -> None:
    text = run("adapters", "inspect", QV)
    for part in (
        "PEFT LoRA",
        "4, alpha 8, scale 2, dropout 0.05",
        "self_attn.q_proj, self_attn.v_proj",
        "0-3; 8 layers",
        "3,584 parameters in 16 tensors, F32",
        "tiny-qwen2 (named golden/tiny-qwen2): by the end of its name alone",
        "PEFT 0.21.2; there is no run.json",
        "no layer is zero",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines() if line.startswith("self_attn.")]
    assert [row[:3] for row in rows] == [["self_attn.q_proj", "4", "0"], ["self_attn.v_proj", "4", "0"]]
    assert len(text.splitlines()) < 14
    layers = run("adapters", "inspect", QV, "--layers")
    assert len([line for line in layers.splitlines() if line.startswith("model.layers.")]) == 8


def test_inspect_of_an_expert_tells_where_its_run_comes_from(din: Path) -> None:
    text = run("adapters", "inspect", "din")
    assert "MLX LoRA" in text
    assert "tiny-qwen2: the hash of its weights was recorded" in text
    assert "afs-mlx 0.1.0: convert imported" in text
    assert "adapter_model.safetensors, sha256" in text
    found = parsed("adapters", "inspect", "din")
    assert Path(found["folder"]) == din
    assert (found["kind"], found["rank"], found["alpha"], found["zero_layers"]) == ("MLX", 4, 8, [])
    assert found["base"]["shapes"]["num_hidden_layers"] == 4
    assert found["provenance"]["packages"]["safetensors"]
    assert len(found["layers"]) == 8
    assert {"path", "norm", "effective_rank", "zero"} <= found["layers"][0].keys()


def test_what_verify_found_is_shown(din: Path) -> None:
    record = json.loads((din / "run.json").read_text())
    verification = {"largest_difference": 3.14159e-6, "reference": "PEFT 0.21.2"}
    (din / "run.json").write_text(json.dumps(record | {"verification": verification}))
    assert "logits within 3.1e-06 of PEFT 0.21.2" in run("adapters", "inspect", "din")
    assert parsed("adapters", "inspect", "din")["provenance"]["verification"] == verification


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], [[]], [3], {}, {"a": 3}, {"file": 3}, {"file": [], "sha256": {}}]
)
def test_strange_record_is_no_obstacle(value: object, din: Path) -> None:
    keys = ("made_by", "code", "packages", "inputs", "data", "parent", "verification", "finished_at")
    record = json.loads((din / "run.json").read_text()) | dict.fromkeys(keys, value)
    (din / "run.json").write_text(json.dumps(record))
    assert "MLX LoRA" in run("adapters", "inspect", str(din))
    assert parsed("adapters", "inspect", str(din))["rank"] == 4


def test_zero_layers_are_said(tmp_path: Path) -> None:
    run("convert", str(GOLDEN / "layers-1-3-bf16"), "--out", str(tmp_path / "mlx"))
    assert "2 zero: model.layers.2.mlp.down_proj, model.layers.2.self_attn.o_proj" in run(
        "adapters", "inspect", str(tmp_path / "mlx")
    )


def test_diff_says_identical_plainly(din: Path) -> None:
    assert run("adapters", "diff", QV, QV) == "identical: the same numbers in the same 8 layers\n"
    assert run("adapters", "diff", QV, "din").startswith("identical: the same numbers in the same 8 layers\n")
    found = parsed("adapters", "diff", "din", str(din))
    assert (found["identical"], found["same_update"], found["settings"]) == (True, True, {})


def test_diff_tells_settings_and_layers_that_differ() -> None:
    text = run("adapters", "diff", QV, SEVEN)
    assert text.startswith("different: all layers together by ")
    for part in ("rank         4 → 8", "alpha        8 → 12", "rslora       False → True", "only B       20 layers:"):
        assert part in text
    assert len(text.splitlines()) < 13
    assert "model.layers.3.self_attn.v_proj" in run("adapters", "diff", QV, SEVEN, "--layers")
    found = parsed("adapters", "diff", QV, SEVEN)
    assert found["settings"]["rank"] == {"a": 4, "b": 8}
    assert (len(found["only_a"]), len(found["only_b"]), len(found["layers"])) == (0, 20, 8)
    assert found["layers"][0]["relative"] > 1
    assert -1 <= found["layers"][0]["cosine"] <= 1


def test_list_shows_the_runs(din: Path) -> None:
    assert din.name in run("adapters", "list")
    (row,) = parsed("adapters", "list")["adapters"]
    assert (row["expert"], row["version"], row["base"], row["status"]) == ("din", "v2", "tiny-qwen2", "imported")


def test_list_of_an_empty_workspace() -> None:
    assert "no adapters in" in run("adapters", "list")


def test_export_peft_writes_what_convert_reads(din: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", "peft", "din", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert "LoRA of rank 4, alpha 8 on 8 layers; F32" in result.stderr
    run("convert", str(out), "--out", str(tmp_path / "back"))
    assert (tmp_path / "back" / "adapters.safetensors").read_bytes() == (din / "adapters.safetensors").read_bytes()
    named = parsed("export", "peft", str(din), "--base-name", "me/base")
    assert (named["path"], named["base_name"], named["blocks"]) == (str(din / "peft"), "me/base", None)


def test_an_experts_adapter_is_found_whatever_its_base(din: Path) -> None:
    """The expert's own base is not on this machine, nor needed."""
    other = din.with_name("v2-other-20000101-000000")
    shutil.copytree(din, other)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"base": {"id": "qwen2.5-coder-3b"}, "demo": False}))
    assert Path(parsed("adapters", "inspect", "din")["folder"]) == other
    assert Path(parsed("adapters", "inspect", "din", "--run", din.name)["folder"]) == din


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "there is no such adapter folder" in failed(3, "adapters", "inspect", str(tmp_path / "nowhere"))
    assert "din@v2 has no adapter" in failed(3, "export", "peft", "din@v2")
    assert "there is no expert 'dinn'" in failed(2, "adapters", "inspect", "dinn")
    assert "a folder is named already" in failed(2, "adapters", "inspect", QV, "--run", "x")
    tmp_path.joinpath("empty").mkdir()
    assert "it has no adapter_config.json" in failed(3, "adapters", "diff", QV, str(tmp_path / "empty"))


def test_all_problems_of_an_adapter_are_in_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(QV, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 0, "lora_alpha": None}))
    message = failed(1, "adapters", "inspect", str(folder))
    assert "(2 problems)" in message
    assert message.count("error:") == 1


def test_file_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(QV, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "\x1b[31mred[/bold]"}))
    text = run("adapters", "inspect", str(folder))
    assert "\x1b" not in text
    assert "red[/bold]" in text


@pytest.mark.parametrize(
    "words", [("adapters", "inspect", QV), ("adapters", "diff", QV, SEVEN), ("adapters", "list")], ids=lambda w: w[1]
)
def test_no_mlx_is_imported(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "HEAVY [] 0" in done.stderr, done.stderr


def test_export_imports_no_mlx_either(din: Path) -> None:
    assert Workspace.find().adapters in din.parents
    words = ("export", "peft", str(din))
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "HEAVY [] 0" in done.stderr, done.stderr


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""


@pytest.mark.parametrize("words", [("adapters",), ("adapters", "inspect"), ("adapters", "diff"), ("export", "peft")])
def test_help_says_what_it_does(words: tuple[str, ...]) -> None:
    assert "Usage: " in run(*words, "--help")
