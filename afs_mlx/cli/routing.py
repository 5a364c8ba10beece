"""`afs-mlx route`: which expert a question goes to, and why."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.render.console import out
from afs_mlx.core.errors import UsageError


def route(
    query: Annotated[str, typer.Argument(help="The question.")] = "",
    why: Annotated[bool, typer.Option("--why", help="Show the scores and the words that decided.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="JSONL with a field `query`; writes one JSON line each.")
    ] = None,
) -> None:
    """Say which expert a question goes to."""
    from afs_mlx.core.jsonl import read_jsonl
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.experts.routing import route as route_query

    if bool(query) == (file is not None):
        raise UsageError(
            "a question or --file is needed, not both", "route", 'afs-mlx route "how many cycles is this?"'
        )
    experts = Catalog.load(Workspace.find()).experts
    if file is not None:
        for text in read_jsonl(file, _query):
            found = route_query(text, experts)
            line = {
                "query": text,
                "expert": found.expert,
                "confidence": round(found.confidence, 4),
                "scores": found.scores,
            }
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        return
    found = route_query(query, experts)
    out().print(found.expert, markup=False)
    if why:
        scores = ", ".join(f"{name} {score}" for name, score in found.scores.items()) or "none"
        out().print(f"  {found.reason}; confidence {found.confidence:.2f}; keyword hits: {scores}", markup=False)


def _query(row: dict[str, object]) -> str:
    value = row.get("query")
    if not isinstance(value, str):
        raise ValueError("query: a text is expected")
    return value
