"""One answer to "who answers", whoever asks: chat, eval, fuse or export."""

import json
import shutil
from pathlib import Path

import pytest

from afs_mlx.answering import for_expert, for_target
from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.convert import ConvertConfig, convert
from afs_mlx.pipelines.evaluate import config_for

GOLDEN = Path(__file__).parent / "golden" / "peft"


@pytest.fixture
def workspace() -> Workspace:
    return Workspace.find()


@pytest.fixture
def catalog(workspace: Workspace) -> Catalog:
    return Catalog.load(workspace)


@pytest.fixture
def run(workspace: Workspace, catalog: Catalog) -> Path:
    """An adapter of din on the tiny base."""
    adapter = next(path for path in sorted(GOLDEN.iterdir()) if (path / "adapter_config.json").is_file())
    return convert(ConvertConfig(adapter, catalog, workspace, base="tiny-qwen2", expert="din")).path


def test_an_expert_with_and_without_an_adapter(run: Path, workspace: Workspace, catalog: Catalog) -> None:
    found = for_target("din", "tiny-qwen2", "", catalog, workspace)
    assert found.require_run().path == run
    assert found.system == catalog.choose("din").system
    bare = for_target("din", "tiny-qwen2", "", catalog, workspace, adapter=False)
    assert bare.run is None
    assert bare.label == "base-tiny-qwen2-v2"
    none = for_target("veran", "tiny-qwen2", "", catalog, workspace)
    assert none.run is None
    assert "veran@v4 has no adapter for tiny-qwen2" in none.notices[0]
    with pytest.raises(MissingError, match="no adapter for tiny-qwen2"):
        none.require_run()
    with pytest.raises(UsageError, match="nothing is trained for it"):
        for_target("general", "tiny-qwen2", "", catalog, workspace).require_run()


def test_a_named_run_brings_its_base(run: Path, workspace: Workspace, catalog: Catalog) -> None:
    found = for_expert(catalog.choose("din"), "auto", run.name, catalog, workspace)
    assert (found.base.id, found.reason) == ("tiny-qwen2", "named")


def test_a_pinned_run_answers_for_everyone(run: Path, workspace: Workspace) -> None:
    workspace.experts_file.write_text(f'[din]\npinned = "{run.name}"\n')
    pinned = Catalog.load(workspace)
    found = for_target("din", "auto", "", pinned, workspace)
    assert (found.require_run().path, found.base.id, found.reason) == (run, "tiny-qwen2", "pinned")


def test_a_run_folder(run: Path, workspace: Workspace, catalog: Catalog) -> None:
    found = for_target(str(run), "auto", "", catalog, workspace)
    assert found.require_run().path == run
    assert found.expert is not None
    assert found.expert.label == "din@v2"
    assert for_target(str(run), "auto", "", catalog, workspace, adapter=False).run is None
    with pytest.raises(UsageError, match="a folder is named already"):
        for_target(str(run), "auto", run.name, catalog, workspace)


def test_an_adapter_of_nobody(run: Path, workspace: Workspace, catalog: Catalog) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "expert": "", "version": "", "system": "be brief"}))
    found = for_target(str(run), "auto", "", catalog, workspace)
    assert found.expert is None
    assert found.system == "be brief"


def test_a_fused_model_answers_as_its_expert(tiny_base: Path, workspace: Workspace, catalog: Catalog) -> None:
    folder = workspace.fused / "din" / "v2-some-run"
    shutil.copytree(tiny_base, folder)
    (folder / "manifest.json").write_text(json.dumps({"expert": "din", "version": "v2", "demo": True}))
    found = for_target(str(folder), "auto", "", catalog, workspace)
    assert (found.fused, found.base.demo, found.label) == (True, True, "v2-some-run")
    assert found.system == catalog.choose("din").system
    with pytest.raises(UsageError, match="a whole model"):
        found.require_run()
    with pytest.raises(UsageError, match="neither another base nor an adapter"):
        for_target(str(folder), "tiny-qwen2", "", catalog, workspace)


def test_a_folder_of_an_experts_name_is_not_the_expert(
    run: Path, workspace: Workspace, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.adapters)
    assert Path("din").is_dir()
    assert for_target("din", "tiny-qwen2", "", catalog, workspace).require_run().path == run


def test_another_base_of_the_same_shapes_is_refused(
    run: Path, workspace: Workspace, catalog: Catalog, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    build_tiny_qwen2(other, seed=1)
    with pytest.raises(AfsError, match=f"made for tiny-qwen2, not for {other}"):
        for_expert(catalog.choose("din"), str(other), run.name, catalog, workspace)


def test_results_of_other_prompts_lie_apart(run: Path, workspace: Workspace, catalog: Catalog) -> None:
    suite = workspace.find_file("evals/suites/optimisation.toml")
    asked = [
        config_for(for_target(name, "tiny-qwen2", "", catalog, workspace, adapter=False), suite, workspace).out
        for name in ("din@v2", "din@v3-fewshot")
    ]
    assert asked[0] != asked[1]
    asked[0].parent.mkdir(parents=True)
    asked[0].write_text("{}")
    of_run = config_for(for_target("din", "tiny-qwen2", "", catalog, workspace), suite, workspace)
    assert of_run.before == asked[0], "a run is held against the base under its own prompt"
