"""The README's shell commands, executed as they stand, in the order they stand, in a workspace of their own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from afs_mlx.core.files import write_text
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog

ROOT = Path(__file__).parents[1]
# `make check` runs the tests; running them from a test would not end.
RUN_ELSEWHERE = {"make test"}


def commands() -> list[str]:
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [line for block in blocks for line in block.splitlines() if line.strip() and line not in RUN_ELSEWHERE]


def test_the_test_command_is_part_of_make_check() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = next(line for line in makefile.splitlines() if line.startswith("check:"))
    assert "test" in check.partition("##")[0].split()
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.smollm2
def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    environment = {**os.environ, "AFS_MLX_HOME": str(tmp_path / "workspace")}
    found = commands()
    assert any("train-din-v2" in command for command in found)
    for command in found:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        if "train-din-v2" in command:
            for word in ("score before", "score after", "[0", "valid loss", "GGUF", "Modelfile", "chat"):
                assert word in done.stdout, f"the report says nothing of {word!r}:\n{done.stdout}"
            assert list((tmp_path / "workspace" / "fused" / "din").glob("*/gguf/din-v2-f16.gguf"))
        if "chat" in command:
            assert done.stdout.strip(), f"{command} gave no answer"


def test_the_expert_of_the_readme_is_an_expert() -> None:
    workspace = Workspace.find()
    block = re.search(
        r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block is not None
    write_text(workspace.experts_file, block[1])
    write_text(workspace.root / "prompts" / "zelda.md", "You know the game.\n")
    chosen = Catalog.load(workspace).choose("zelda")
    assert (chosen.label, chosen.system) == ("zelda@v1", "You know the game.")
