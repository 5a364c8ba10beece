"""Writes docs/commands.md from the real command line; `--check` fails when the file is behind it."""

import json
import os
import sys
from pathlib import Path
from typing import get_args

os.environ["COLUMNS"] = "100"
os.environ["TERMINAL_WIDTH"] = "100"

import typer.main
from pydantic import BaseModel
from typer.testing import CliRunner

from afs_mlx.cli.app import app

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

Made by `python docs/commands.py` from the command line itself; do not edit.

Exit codes: 0 ok, 1 error, 2 usage, 3 a model or data is not on this machine, 4 refused by policy or gate,
130 interrupted. Answers go to stdout, notices and progress to stderr. With `--json` a command prints one JSON object
with `schema_version`.

`AFS_MLX_HOME` moves the workspace; without it the current folder is used when it holds one (adapters/, fused/ or
experts.toml), else the XDG data folder.
"""


def command_paths(group: typer.main.TyperGroup, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command as the words that call it, groups before their members."""
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*above, name))
        if isinstance(command, typer.main.TyperGroup):
            found += command_paths(command, (*above, name))
    return found


def recipe_table() -> str:
    """The keys that --set and --config take, read from the recipe itself."""
    from afs_mlx.schema.recipe import Recipe

    head = "## Recipe keys\n\nFor `--set key=value` and `--config file.toml`; the catalog sets them per expert.\n"
    return "\n".join([head, "| key | default | meaning |", "|---|---|---|", *recipe_rows(Recipe), ""])


def recipe_rows(model: type[BaseModel], above: str = "") -> list[str]:
    """A line for each key; the keys of a table inside come as `table.key`, and the table has no line of its own."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            rows += recipe_rows(type(default), f"{above}{name}.")
            continue
        choices = get_args(getattr(field.annotation, "__value__", field.annotation))
        listed = f" ({', '.join(choices)})" if choices and all(isinstance(choice, str) for choice in choices) else ""
        rows.append(f"| `{above}{name}` | `{json.dumps(default)}` | {field.description}{listed} |")
    return rows


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    parts = [HEAD]
    for words in [(), *command_paths(group)]:  # type: ignore[arg-type]
        result = CliRunner().invoke(app, [*words, "--help"], prog_name="afs-mlx")
        if result.exit_code != 0:
            raise SystemExit(f"{' '.join(words)} --help failed: {result.output}")
        help_text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## `{' '.join(('afs-mlx', *words))}`\n\n```text\n{help_text}\n```\n")
    return "\n".join([*parts, recipe_table()])


def main() -> None:
    text = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit("docs/commands.md is behind the command line: run .venv/bin/python docs/commands.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
