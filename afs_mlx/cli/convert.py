"""`afs-mlx convert`: a PEFT adapter in."""

from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, err, out


def convert(
    peft_folder: Annotated[Path, typer.Argument(metavar="PEFT_FOLDER", help="adapter_config.json and the weights.")],
    base: Annotated[
        str, typer.Option("--base", help="A base id or a model folder; auto reads it from the adapter.")
    ] = "auto",
    expert: Annotated[
        str, typer.Option("--expert", metavar="EXPERT[@VERSION]", help="Register it as this expert's.")
    ] = "",
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The folder instead of adapters/<expert>/<run>.")
    ] = None,
    adapter: Annotated[str, typer.Option("--adapter", help="Which one, where the folder holds several.")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare logits with PEFT (or base + update) in float32 first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a PEFT adapter (LoRA or DoRA) into an MLX one.

    Every problem of the adapter is listed, and nothing is written, unless it fits its base.
    """
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog
    from afs_mlx.pipelines.convert import ConvertConfig
    from afs_mlx.pipelines.convert import convert as convert_adapter

    workspace = Workspace.find()
    catalog = Catalog.load(workspace)
    result = convert_adapter(
        ConvertConfig(peft_folder, catalog, workspace, base, expert, out_folder, adapter=adapter, verify=verify)
    )
    for notice in result.notices:
        err().print(f"notice: {notice}", markup=False)
    if as_json:
        emit_json({key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()})
        return
    err().print(
        f"rank {result.rank}, alpha {result.alpha:g} (scale {result.scale:g}), {', '.join(result.targets)} in "
        f"{len(result.layers)} layers of {result.base}",
        markup=False,
    )
    if result.verification:
        shown = {key: result.verification[key] for key in ("largest_difference", "largest_logit", "reference")}
        err().print("verified: logits within {largest_difference:.1e} of {reference}".format(**shown), markup=False)
    if result.expert:
        err().print(f"registered: afs-mlx chat --expert {result.expert} --run {result.path.name}", markup=False)
    out().print(workspace.shown(result.path), markup=False)
