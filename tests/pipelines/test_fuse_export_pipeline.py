"""Run → fused folder → GGUF: each artifact names the one before it by hash; a failure leaves what was there."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from mlx_lm import load

from afs_mlx.core.errors import AfsError, ExitCode, MissingError, RefusedError
from afs_mlx.core.files import folder_size_bytes, sha256_of, write_json
from afs_mlx.core.paths import Workspace, cache_folder
from afs_mlx.engine.bases.location import locate, weights_hash
from afs_mlx.engine.fusing.options import Limits, StorageOptions
from afs_mlx.engine.gguf import writer
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.export import ExportConfig, ExportResult, export
from afs_mlx.pipelines.fuse import FuseConfig, FuseResult, fuse
from afs_mlx.pipelines.train import TrainConfig, train
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.sampling import Sampling

pytestmark = pytest.mark.slow

SYSTEM = 'You are Din. Say "done".'
SAMPLING = Sampling(temperature=0.5, top_p=0.8, context_tokens=2048, max_tokens=99, stop=("###",))
RECIPE = Recipe(rank=4, alpha=8, layers=2, epochs=2, learning_rate=3e-3, batch_tokens=100)


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base given by its folder, so that it stays valid from test to test."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFS_MLX_HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        workspace = Workspace.find()
        rows = [
            Example(messages=(Message(role="user", content=f"q{n}"), Message(role="assistant", content="stz $10")))
            for n in range(4)
        ]
        config = TrainConfig(
            expert="din",
            version="v2",
            system=SYSTEM,
            recipe=RECIPE,
            base=str(tiny_base),
            own_base="",
            bases=Catalog.load(workspace).bases,
            train=rows,
            valid=rows[:1],
            data_record={},
            workspace=workspace,
        )
        return train(config, lambda event: None).path


@pytest.fixture
def run(trained: Path) -> Run:
    """The run, copied into this test's workspace."""
    path = Workspace.find().adapters / "din" / trained.name
    shutil.copytree(trained, path)
    return Run.read(path)


def fused(run: Run, **changes: Any) -> FuseResult:
    workspace = Workspace.find()
    config = FuseConfig(run, Catalog.load(workspace).bases, workspace, limits=Limits(rows=1))
    return fuse(replace(config, **changes))


def exported(folder: Path, **changes: Any) -> ExportResult:
    config = ExportConfig(model_folder=folder, name="din-v2", file_type="f16", system=SYSTEM, sampling=SAMPLING)
    return export(replace(config, **changes), lambda done, total: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_fused_folder_answers_as_base_and_adapter(run: Run, tiny_base: Path) -> None:
    result = fused(run)
    tokens = mx.array([[5, 6, 7, 8, 9]])
    whole, _ = load(str(result.path))
    parts, _ = load(str(tiny_base), adapter_path=str(run.path))
    bare, _ = load(str(tiny_base))
    whole_logits, part_logits = np.array(whole(tokens)), np.array(parts(tokens))
    assert np.abs(whole_logits - part_logits).max() < 1e-4
    assert np.abs(np.array(bare(tokens)) - part_logits).max() > 0.01
    assert result.path == Workspace.find().fused / "din" / run.name
    assert (result.layers, result.dtype, result.notice) == (14, "float32", "")
    assert result.size_bytes <= folder_size_bytes(result.path)


def test_each_manifest_names_its_parent_by_hash(run: Run, tiny_base: Path) -> None:
    model = fused(run).path
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["parent"]["run"] == run.name
    assert manifest["parent"]["sha256"] == sha256_of(run.path / WEIGHTS)
    assert manifest["base"]["weights_sha256"] == weights_hash(tiny_base) == manifest["base"]["fused_into_sha256"]
    assert manifest["base"]["weights_sha256"] == run.record["base"]["weights_sha256"]
    assert manifest["weights_sha256"] == weights_hash(model)
    assert (manifest["expert"], manifest["version"], manifest["system"]) == ("din", "v2", SYSTEM)
    assert manifest["dequantised_base"] is False

    result = exported(model)
    shipped = json.loads(result.gguf.with_name("manifest.json").read_text())
    assert shipped["gguf"]["sha256"] == sha256_of(result.gguf) == result.sha256
    assert shipped["gguf"]["size_bytes"] == result.gguf.stat().st_size == result.size_bytes
    assert shipped["parent"] == manifest
    assert shipped["parent"]["parent"]["sha256"] == sha256_of(run.path / WEIGHTS)


def test_the_base_s_licence_goes_all_the_way(trained: Path) -> None:
    """Base → manifest → GGUF and Modelfile; a base that is in no catalog states none."""
    bases = Catalog.load(Workspace.find()).bases
    run = Run(trained, {**Run.read(trained).record, "base": {"id": "tiny-qwen2"}})
    bases = {**bases, "tiny-qwen2": bases["tiny-qwen2"].model_copy(update={"license": "mpl-2.0"})}
    model = fuse(FuseConfig(run, bases, Workspace.find())).path
    assert json.loads((model / "manifest.json").read_text())["license"] == "mpl-2.0"
    result = exported(model)
    field = GGUFReader(result.gguf).get_field("general.license")
    assert field is not None
    assert field.contents() == "mpl-2.0"
    assert "LICENSE mpl-2.0" in result.modelfile.read_text().replace('"', "")


def test_a_base_without_a_stated_licence_gets_none(run: Run) -> None:
    assert "LICENSE" not in exported(fused(run).path).modelfile.read_text()


def test_the_hash_cache_keeps_no_path_that_vanished(run: Run) -> None:
    fused(run)
    known = json.loads((cache_folder() / "hashes.json").read_text())
    assert known, "the base's hash is kept"
    assert [path for path in known if not Path(path).is_file()] == []


def test_the_gguf_holds_the_fused_weights(run: Run) -> None:
    model = fused(run).path
    seen: list[tuple[int, int]] = []
    config = ExportConfig(model_folder=model, name="din-v2", file_type="f16", system=SYSTEM, sampling=SAMPLING)
    result = export(config, lambda done, total: seen.append((done, total)))
    reader = GGUFReader(result.gguf)
    assert len(reader.tensors) == result.tensors == seen[-1][0] == seen[-1][1]
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    wanted = np.array(mx.load(str(model / "model.safetensors"))["model.layers.3.mlp.down_proj.weight"])
    assert np.abs(tensors["blk.3.ffn_down.weight"].astype(np.float32) - wanted).max() < 1e-3


def test_the_modelfile_says_what_chat_says(run: Run) -> None:
    result = exported(fused(run).path, shots=(Shot(user="lda #$00", assistant="stz"),))
    text = result.modelfile.read_text()
    assert result.modelfile.name == "Modelfile"
    assert result.gguf.name == "din-v2-f16.gguf"
    assert f"FROM ./{result.gguf.name}" in text.replace('"', "")
    assert SYSTEM in text
    for line in ("temperature 0.5", "top_p 0.8", "num_ctx 2048", "num_predict 99"):
        assert f"PARAMETER {line}" in text
    for stop in ("<|im_end|>", "###"):
        assert f'PARAMETER stop "{stop}"' in text
    assert text.index("MESSAGE user") < text.index("MESSAGE assistant")


def test_fusing_again_replaces_the_folder_whole(run: Run) -> None:
    model = fused(run).path
    (model / "left-over.txt").write_text("from before")
    exported(model)
    before = sha256_of(model / "model.safetensors")
    assert fused(run).path == model
    assert not (model / "left-over.txt").exists()
    assert not (model / "gguf").exists(), "a GGUF of weights that were replaced must not stay"
    assert sha256_of(model / "model.safetensors") == before
    assert [path.name for path in model.parent.iterdir()] == [model.name]


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_run_that_is_not_whole_is_not_fused(run: Run, status: str) -> None:
    write_json(run.path / "run.json", {**run.record, "status": status})
    with pytest.raises(MissingError, match=rf"no finished adapter \({status}\)"):
        fused(Run.read(run.path))
    assert not Workspace.find().fused.exists()


def test_a_run_without_weights_is_not_fused(run: Run) -> None:
    (run.path / WEIGHTS).unlink()
    with pytest.raises(MissingError, match="no finished adapter"):
        fused(run)


def test_a_base_that_is_gone_is_told(run: Run, tmp_path: Path) -> None:
    record = {**run.record, "base": {"id": str(tmp_path / "gone")}}
    with pytest.raises(AfsError, match="gone"):
        fused(Run(run.path, record))


def test_a_quantised_base_alone_is_dequantised_with_a_notice(
    trained: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the original lies beside it, that is fused into."""
    import huggingface_hub.constants
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    small = tmp_path / "hub" / "models--org--small" / "snapshots" / "1"
    shutil.copytree(tiny_base, small)
    model, config = quantize_model(*load_model(small), group_size=32, bits=8)
    save_model(small, model)
    save_config(config, small / "config.json")
    base = Base(
        id="own", source="hub", layout="qwen2", parameters=1, license="mit", hub="org/small", original="org/whole"
    )
    run = Run(trained, {**Run.read(trained).record, "base": {"id": "own"}})
    workspace = Workspace.find()
    result = fuse(FuseConfig(run, {"own": base}, workspace))
    assert result.dtype == "bfloat16"
    assert "afs-mlx pull own --original" in result.notice
    assert json.loads((result.path / "manifest.json").read_text())["dequantised_base"] is True

    whole = tmp_path / "hub" / "models--org--whole" / "snapshots" / "1"
    shutil.copytree(tiny_base, whole)
    result = fuse(FuseConfig(run, {"own": base}, workspace))
    manifest = json.loads((result.path / "manifest.json").read_text())
    assert (result.dtype, result.notice) == ("float32", "")
    assert manifest["base"]["fused_into_sha256"] == weights_hash(whole)
    assert manifest["base"]["weights_sha256"] == weights_hash(small), "what it was chosen by"


# Agreement


def record_of(result: FuseResult) -> dict[str, Any]:
    return dict(json.loads((result.path / "manifest.json").read_text()))


def validated_on(run: Run, name: str, inputs: list[dict[str, Any]]) -> Run:
    """The run as if trained on a split that lies in the workspace."""
    folder = Workspace.find().splits / name
    folder.mkdir(parents=True)
    row = {"prompt": "Clear $10.", "completion": "stz $10"}
    (folder / "valid.jsonl").write_text(json.dumps(row) + "\n")
    write_json(folder / "manifest.json", {"inputs": inputs})
    return Run(run.path, {**run.record, "data": {"inputs": inputs}})


def test_the_manifest_tells_how_much_fused_agrees_with_base_and_adapter(run: Run) -> None:
    result = fused(run)
    record = record_of(result)["agreement"]
    assert record["kl"] == pytest.approx(0, abs=1e-5)
    assert record["top1"] == 1.0
    assert record["survival"]["min"] == pytest.approx(1, abs=1e-4)
    assert len(record["survival"]["layers"]) == result.layers == 14
    assert (record["passed"], record["forced"], record["reason"]) == (True, False, "")
    assert record["prompts"] == result.report.prompts == "built-in questions"
    assert record["positions"] == result.report.positions > 0


def test_the_run_s_own_validation_rows_are_asked(run: Run) -> None:
    inputs = [{"file": "rows.jsonl", "sha256": "0" * 64, "rows": 1}]
    validated = validated_on(run, "rows", inputs)
    result = fused(validated)
    assert result.report.prompts.endswith("data/splits/rows/valid.jsonl")
    changed = Run(run.path, {**validated.record, "data": {"inputs": [{**inputs[0], "sha256": "1" * 64}]}})
    assert fused(changed).report.prompts == "built-in questions", "the split was made anew from other rows"


def test_a_folder_of_rows_is_known_by_its_hash(run: Run) -> None:
    validated = validated_on(run, "mine", [])
    valid = Workspace.find().splits / "mine" / "valid.jsonl"
    inputs = [{"file": "train.jsonl", "sha256": "0"}, {"file": "valid.jsonl", "sha256": sha256_of(valid)}]
    found = fused(Run(run.path, {**validated.record, "data": {"inputs": inputs}}))
    assert found.report.prompts.endswith("data/splits/mine/valid.jsonl")


def test_without_them_the_suite_s_questions_are_asked(run: Run) -> None:
    suite = Workspace.find().find_file("evals/suites/optimisation.toml")
    assert fused(run, suite=suite, limits=Limits(rows=2)).report.prompts == "suite optimisation"


def test_a_model_that_agrees_too_little_gets_no_folder(run: Run) -> None:
    kept = contents(fused(run).path)
    two_bits = StorageOptions(quantize="mixed_2_6")
    with pytest.raises(RefusedError, match=r"held back: .*\d+% of the tokens agree, 100% are asked") as caught:
        fused(run, storage=two_bits, limits=Limits(min_top1=1, min_survival=0, rows=8))
    assert caught.value.code == ExitCode.REFUSED
    assert "--quantize 8" in caught.value.fix
    assert "--force" in caught.value.fix
    folder = Workspace.find().fused / "din" / run.name
    assert contents(folder) == kept, "the earlier one stays"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_update_that_does_not_survive_is_held_back_and_forced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from afs_mlx.engine.fusing import layers

    # As mlx_lm.fuse rounds: to what is next, whatever the update.
    monkeypatch.setattr(layers, "with_feedback", lambda weight, *_: weight)
    small = tiny_quantised(run)
    options = StorageOptions(quantize="4", changed="same")
    with pytest.raises(RefusedError, match=r"\d+% of the update survive, 90% are asked"):
        fused(small, storage=options)
    assert not (Workspace.find().fused / "din" / run.name).exists()
    result = fused(small, storage=options, force=True)
    record = record_of(result)["agreement"]
    assert (record["passed"], record["forced"]) == (False, True)
    assert "of the update survive" in record["reason"]
    assert result.report.reason == record["reason"]
    assert record_of(result)["storage"]["changed"] == "same"


def tiny_quantised(run: Run) -> Run:
    """The run on a 4-bit repack of its base, with a tenth of its update, which that grid would swallow."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    folder = Workspace.find().root / "tiny-4bit"
    shutil.copytree(run.base, folder)
    model, config = quantize_model(*load_model(Path(run.base)), group_size=64, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    config_file = run.path / "adapter_config.json"
    value = json.loads(config_file.read_text())
    value["lora_parameters"]["scale"] /= 10
    write_json(config_file, value)
    return Run(run.path, {**run.record, "base": {"id": str(folder)}})


def test_a_quantised_base_says_what_its_changed_layers_cost(run: Run) -> None:
    small = tiny_quantised(run)
    options = StorageOptions(quantize="4")
    result = fused(small, storage=options, limits=Limits(min_top1=0, rows=1))
    assert "14 changed layers are kept at 8 bits" in result.notice
    assert record_of(result)["changed_bits"] == {"8": 14}
    assert result.report.median_survival > 0.9


# Failures


def disk_is_full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place",
    [
        "afs_mlx.engine.fusing.writing.Shards.add",
        "afs_mlx.engine.fusing.writing.Shards.close",
        "afs_mlx.engine.fusing.fusion.shutil.copyfile",
        "afs_mlx.engine.fusing.fusion.save_config",
        "afs_mlx.pipelines.fuse.write_json",
    ],
)
def test_a_full_disk_leaves_the_earlier_fused_folder(run: Run, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(run).path
    exported(model)
    kept, adapter = contents(model), contents(run.path)
    with monkeypatch.context() as patch:
        patch.setattr(place, disk_is_full)
        with pytest.raises(AfsError, match="disk is full"):
            fused(run)
    assert contents(model) == kept
    assert contents(run.path) == adapter
    assert [path.name for path in model.parent.iterdir()] == [model.name], "no temporary folder stays"


def test_a_full_disk_leaves_no_fused_folder_where_none_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afs_mlx.engine.fusing.writing.Shards.add", disk_is_full)
    with pytest.raises(AfsError, match="disk is full"):
        fused(run)
    assert list((Workspace.find().fused / "din").iterdir()) == []


def test_an_export_that_breaks_off_leaves_the_earlier_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(run).path
    result = exported(model)
    kept = contents(result.gguf.parent)

    def break_off(done: int, total: int) -> None:
        if done == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    config = ExportConfig(model_folder=model, name="din-v2", file_type="f16", system="Other.", sampling=SAMPLING)
    with pytest.raises(AfsError, match="disk is full"):
        export(config, break_off)
    assert contents(result.gguf.parent) == kept


def test_a_prompt_that_no_modelfile_can_hold_costs_no_gguf(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(run).path
    written: list[str] = []
    monkeypatch.setattr(writer, "export_gguf", lambda *a, **k: written.append("gguf"))
    with pytest.raises(AfsError, match="a Modelfile cannot hold this"):
        exported(model, system='ends """ here')
    assert written == []
    assert not (model / "gguf").exists()


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no fused model"):
        exported(tmp_path)


def test_the_built_base_can_be_found_by_its_id_too(trained: Path) -> None:
    """A run on `tiny-qwen2` fuses into the folder that `locate` gives."""
    bases = Catalog.load(Workspace.find()).bases
    run = Run(trained, {**Run.read(trained).record, "base": {"id": "tiny-qwen2"}})
    result = fuse(FuseConfig(run, bases, Workspace.find()))
    folder = locate(bases["tiny-qwen2"])
    assert folder is not None
    assert json.loads((result.path / "manifest.json").read_text())["base"]["fused_into_sha256"] == weights_hash(folder)
