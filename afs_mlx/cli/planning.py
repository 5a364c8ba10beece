"""`afs-mlx train --plan`."""

from afs_mlx.cli.train_requests import Request


def show_plan(request: Request, *, as_json: bool) -> None:
    """Print the forecast."""
    raise NotImplementedError
