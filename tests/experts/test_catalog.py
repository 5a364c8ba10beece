"""The shipped catalog, and a person's experts.toml laid over it."""

from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import HERE, Catalog
from afs_mlx.schema.expert import NAME


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "ws"
    (root / "prompts").mkdir(parents=True)
    return Workspace(root)


def catalog_with(workspace: Workspace, overlay: str) -> Catalog:
    workspace.experts_file.write_text(overlay, encoding="utf-8")
    return Catalog.load(workspace)


def problems_with(workspace: Workspace, overlay: str) -> list[str]:
    with pytest.raises(AfsError) as caught:
        catalog_with(workspace, overlay)
    assert caught.value.where == str(workspace.experts_file)
    return [line.strip() for line in caught.value.what.splitlines()[1:]]


def test_the_shipped_experts(workspace: Workspace) -> None:
    catalog = Catalog.load(workspace)
    versions = {name: list(expert.versions) for name, expert in catalog.experts.items()}
    assert versions == {
        "din": ["v2", "v3-fewshot"],
        "nayru": ["v5"],
        "farore": ["v5"],
        "veran": ["v4"],
        "majora": ["v2"],
        "farore-afs": ["v1"],
        "general": [],
    }
    assert all(NAME.match(name) for name in versions)


def test_every_shipped_version_stands_on_a_known_base_and_a_prompt(workspace: Workspace) -> None:
    catalog = Catalog.load(workspace)
    for name, expert in catalog.experts.items():
        for version_name in expert.versions:
            chosen = catalog.choose(f"{name}@{version_name}")
            assert chosen.version is not None
            assert chosen.version.base in catalog.bases
            assert chosen.system
            assert chosen.label == f"{name}@{version_name}"


@pytest.mark.parametrize(
    ("name", "temperature", "top_p", "context_tokens"),
    [
        ("nayru", 0.7, 0.9, 8192),
        ("veran", 0.4, 0.85, 4096),
        ("majora", 0.2, 0.9, 8192),
        ("din", 0.5, 0.9, 4096),
        ("din@v3-fewshot", 0.2, 0.9, 4096),
        ("farore", 0.4, 0.85, 4096),
    ],
)
def test_sampling_as_the_experts_were_trained(
    workspace: Workspace, name: str, temperature: float, top_p: float, context_tokens: int
) -> None:
    sampling = Catalog.load(workspace).choose(name).sampling
    assert (sampling.temperature, sampling.top_p, sampling.context_tokens) == (temperature, top_p, context_tokens)


def test_choosing_by_name_and_version(workspace: Workspace) -> None:
    catalog = Catalog.load(workspace)
    assert catalog.choose("din").label == "din@v2"
    assert catalog.choose("din@v3-fewshot").version_name == "v3-fewshot"
    general = catalog.choose("general")
    assert (general.label, general.version, general.system) == ("general", None, "")


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("verran", "there is no expert 'verran'", "did you mean 'veran'?"),
        ("dinn@v2", "there is no expert 'dinn'", "did you mean 'din'?"),
        ("", "there is no expert ''", "known: din, nayru, farore, veran, majora, farore-afs, general"),
        ("DIN", "there is no expert 'DIN'", "known: "),
        ("din@v3", "din has no version 'v3'", "known: v2, v3-fewshot"),
        ("din@fewshot", "din has no version 'fewshot'", "did you mean 'v3-fewshot'?"),
        ("veran@latest", "veran has no version 'latest'", "known: v4"),
        ("general@v1", "general has no version 'v1'", "general has no versions"),
    ],
)
def test_an_unknown_expert_or_version_comes_with_the_nearest(
    workspace: Workspace, name: str, what: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Catalog.load(workspace).choose(name)
    assert caught.value.what == what
    assert caught.value.fix.startswith(fix)


def test_the_overlay_adds_an_expert(workspace: Workspace) -> None:
    (workspace.root / "prompts" / "ganon.md").write_text("You are Ganon.\n")
    catalog = catalog_with(
        workspace,
        '[ganon]\ntitle = "finds vulnerabilities"\nprompt = "ganon"\nkeywords = ["exploit"]\n'
        '[ganon.versions.v1]\nkind = "prompt"\nbase = "tiny-qwen2"\n',
    )
    chosen = catalog.choose("ganon")
    assert (chosen.label, chosen.system) == ("ganon@v1", "You are Ganon.")
    shipped = Catalog.load(Workspace(workspace.root / "empty"))
    assert {name: e for name, e in catalog.experts.items() if name != "ganon"} == shipped.experts


def test_the_overlay_changes_one_key_and_nothing_else(workspace: Workspace) -> None:
    shipped = Catalog.load(Workspace(workspace.root / "empty")).experts["din"]
    din = catalog_with(workspace, "[din.versions.v2.recipe]\nepochs = 7\n").experts["din"]
    assert din.versions["v2"].recipe.epochs == 7
    recipe = shipped.versions["v2"].recipe.model_copy(update={"epochs": 7})
    v2 = shipped.versions["v2"].model_copy(update={"recipe": recipe})
    assert din == shipped.model_copy(update={"versions": {**shipped.versions, "v2": v2}})


def test_the_overlay_pins_a_run_and_adds_a_version(workspace: Workspace) -> None:
    catalog = catalog_with(
        workspace,
        '[din]\npinned = "run-1"\ndefault = "v9"\n[din.versions.v9]\nkind = "lora"\n[nayru.versions.v6]\nkind = "lora"',
    )
    assert catalog.experts["din"].pinned == "run-1"
    assert catalog.choose("din").version_name == "v9"
    assert list(catalog.experts["din"].versions) == ["v2", "v3-fewshot", "v9"]
    assert catalog.choose("nayru").version_name == "v6"


def test_a_list_in_the_overlay_replaces_the_list(workspace: Workspace) -> None:
    assert catalog_with(workspace, '[din]\nkeywords = ["squeeze"]').experts["din"].keywords == ("squeeze",)


def test_all_problems_of_the_overlay_come_together(workspace: Workspace) -> None:
    found = problems_with(
        workspace,
        """
stray = 5
[din]
titel = "x"
[din.versions.v2]
thresold = 0.5
recipe = { rank = 0, alfa = 8 }
[Ganon]
title = "upper case"
[zelda]
prompt = "zelda"
[nayru.versions.V6]
kind = "lora"
""",
    )
    for expected in (
        "stray: an expert is a table, such as [stray]",
        "Ganon: write lower-case letters, digits and single hyphens",
        "din.titel: there is no such key; did you mean 'title'?",
        "din.versions.v2.thresold: there is no such key; did you mean 'threshold'?",
        "din.versions.v2.recipe.alfa: there is no such key; did you mean 'alpha'?",
        "zelda.title: Field required",
    ):
        assert expected in found
    assert any(line.startswith("din.versions.v2.recipe.rank: ") for line in found)
    assert any(line.startswith("nayru.versions: ") and "'V6'" in line for line in found)
    assert len(found) == 8


def test_a_broken_overlay_names_its_line(workspace: Workspace) -> None:
    with pytest.raises(AfsError, match=r"not valid TOML: .*line 3") as caught:
        catalog_with(workspace, '[din]\npinned = "a"\ndefault = v2\n')
    assert caught.value.where == str(workspace.experts_file)


def test_a_table_replaced_by_a_value_is_refused_once(workspace: Workspace) -> None:
    assert problems_with(workspace, 'din = "v3"') == ["din: an expert is a table, such as [din]"]


def test_a_prompt_of_the_workspace_hides_the_shipped_one(workspace: Workspace) -> None:
    (workspace.root / "prompts" / "din.md").write_text("My own Din.\n\n")
    assert Catalog.load(workspace).choose("din").system == "My own Din."


def test_a_prompt_that_is_nowhere(workspace: Workspace) -> None:
    catalog = catalog_with(workspace, '[din]\nprompt = "dim"\n')
    with pytest.raises(AfsError, match="the prompt 'dim' does not exist") as caught:
        catalog.choose("din")
    assert str(workspace.root / "prompts" / "dim.md") in caught.value.where


def test_a_prompt_that_is_not_utf8(workspace: Workspace) -> None:
    path = workspace.root / "prompts" / "din.md"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(AfsError, match=r"not UTF-8: .* at byte 3") as caught:
        Catalog.load(workspace).choose("din")
    assert caught.value.where == str(path)


def test_every_name_of_a_base_means_it(workspace: Workspace) -> None:
    catalog = Catalog.load(workspace)
    for name in (
        "qwen2.5-coder-3b",
        "Qwen/Qwen2.5-Coder-3B-Instruct",
        "QWEN/qwen2.5-coder-3b-instruct",
        "mlx-community/Qwen2.5-Coder-3B-Instruct-4bit",
        "unsloth/Qwen2.5-Coder-3B-Instruct-bnb-4bit",
    ):
        found = catalog.base_named(name)
        assert found is not None
        assert found.id == "qwen2.5-coder-3b"
    assert catalog.base_named("Qwen/Qwen2.5-Coder-3B") is None  # the base model is not the instruct model
    assert catalog.base_named("") is None


def test_no_name_means_two_bases(workspace: Workspace) -> None:
    bases = Catalog.load(workspace).bases.values()
    names = [name for base in bases for name in base.lineage]
    assert len(names) == len(set(names))


def test_no_prompt_file_is_left_unused(workspace: Workspace) -> None:
    experts = Catalog.load(workspace).experts.values()
    used = {expert.prompt for expert in experts} | {v.prompt for expert in experts for v in expert.versions.values()}
    assert {path.stem for path in (HERE / "prompts").glob("*.md")} == used - {""}
