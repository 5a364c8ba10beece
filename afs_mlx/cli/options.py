"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

ExpertName = Annotated[
    str, typer.Argument(metavar="EXPERT[@VERSION]", help="An expert of the catalog, such as din or din@v2.")
]
BaseName = Annotated[
    str, typer.Option("--base", help="A base id, a model folder, or auto: the expert's own, else the embedded one.")
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Your own rows: one JSONL file to split, or a folder with train.jsonl and valid.jsonl."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file with recipe keys, laid over the catalog's.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One recipe key; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunName = Annotated[str, typer.Option("--run", help="A run below adapters/<expert>/ instead of the best one.")]
