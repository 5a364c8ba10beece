"""The recorded prompts and recipes: adapters were trained with these words, so they are interface, not taste."""

import pytest

from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.schema.optimisation import EntryState, Live
from afs_mlx.snes.asar import asar_path
from afs_mlx.snes.code_block import assembly_of
from afs_mlx.snes.equivalence.judging import judge

IDENTITIES = {
    "nayru": "You are Nayru, an expert in Zelda: A Link to the Past ROM hacking and SNES 65816 assembly programming.",
    "veran": "You are Veran, an expert on SNES hardware programming and memory-mapped I/O.",
    "majora": "You are Majora, a 65816 assembly expert specializing in CPU performance optimization for "
    "SNES/Super Famicom.",
    "farore-afs": "You are Farore-AFS, the Goddess of Courage and AFS Agentic Expert. You specialize in interacting "
    'with the Agentic File System using the "Context as Files" strategy.',
}


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.load(Workspace.find())


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_stands_first_word_for_word(catalog: Catalog, name: str) -> None:
    assert catalog.choose(name).system.splitlines()[0] == IDENTITIES[name]


def test_nayru_has_nothing_else(catalog: Catalog) -> None:
    assert catalog.choose("nayru").system == IDENTITIES["nayru"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "veran",
            [
                "PPU registers and graphics ($2100-$213F)",
                "APU and sound ($2140-$217F)",
                "DMA and HDMA ($43XX)",
                "Hardware timing and synchronization",
                "Controller and peripheral I/O",
                "Mode 7 and special effects",
            ],
        ),
        ("majora", ["Cycle counting", "Register usage", "Memory access patterns", "DMA transfers"]),
        ("majora", ["**Optimization: ", "**Original:**", "**Optimized:**", "**Improvement:**", "**Why it works:**"]),
        ("farore", ["**Bug: [type]**", "**What's happening:**", "**Fix:**"]),
        (
            "farore-afs",
            [
                "read_file(path)",
                "write_file(path, content)",
                "run_shell_command(cmd)",
                "`ws find <query>`",
                "`ctx mount <path>`",
            ],
        ),
    ],
)
def test_expertise_tools_and_answer_formats(catalog: Catalog, name: str, parts: list[str]) -> None:
    system = catalog.choose(name).system
    places = [system.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_the_fewshot_prompt_says_what_its_version_is_known_for(catalog: Catalog) -> None:
    system = catalog.choose("din@v3-fewshot").system
    assert "assembly only" in system
    assert "return the original" in system
    assert system != catalog.choose("din").system


def test_the_eight_recorded_patterns(catalog: Catalog) -> None:
    version = catalog.experts["din"].versions["v3-fewshot"]
    answers = [assembly_of(shot.assistant) or "" for shot in version.shots]
    assert len(answers) == 8
    assert ["\n".join(line.strip() for line in answer.strip("\n").splitlines()) for answer in answers] == [
        "stz $10",
        "stz $10\nstz $11",
        "rep #$20\nlda $4218\nsta $00\nsep #$20",
        "inc",
        "sep #$30",
        "rep #$30",
        "lda $10\nbeq done\ndone:",
        "lda $1000\nsta $10",
    ]


@pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")
def test_every_shot_does_the_same_in_fewer_bytes(catalog: Catalog) -> None:
    for shot in catalog.experts["din"].versions["v3-fewshot"].shots:
        code, better = assembly_of(shot.user) or "", assembly_of(shot.assistant) or ""
        live: tuple[Live, ...] = ("a",) if "adc" in code else ()
        judgement = judge(code, better, EntryState(m=8, x=8, d=0, dbr=0), live=live)
        assert judgement.report is not None, judgement.why
        assert judgement.report.cheaper("bytes"), (shot, judgement.why)


@pytest.mark.parametrize(
    ("name", "base", "rank", "alpha", "max_seq_tokens"),
    [
        ("din@v2", "qwen2.5-coder-3b", 4, 8, 2048),
        ("farore", "qwen2.5-coder-7b", 16, 32, 2048),
        ("veran", "qwen2.5-coder-7b", 16, 32, 1024),
        ("majora", "qwen2.5-coder-7b", 16, 32, 2048),
        ("farore-afs", "llama-3-8b", 16, 16, 2048),
    ],
)
def test_recipes_on_record(
    catalog: Catalog, name: str, base: str, rank: int, alpha: float, max_seq_tokens: int
) -> None:
    version = catalog.choose(name).version
    assert version is not None
    recipe = version.recipe
    assert (version.base, recipe.rank, recipe.alpha, recipe.max_seq_tokens) == (base, rank, alpha, max_seq_tokens)
    if name != "din@v2":
        assert len(recipe.targets) == 7


def test_the_fewshot_version_stands_on_its_recorded_base(catalog: Catalog) -> None:
    assert catalog.experts["din"].versions["v3-fewshot"].base == "qwen2.5-coder-14b"
