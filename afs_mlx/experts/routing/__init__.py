"""Question → expert. Knows no models: a router that needs a model's states is handed a function that computes them."""

from afs_mlx.experts.routing.choosing import decide, default_router, route
from afs_mlx.experts.routing.route import FALLBACK, Route, Router

__all__ = ["FALLBACK", "Route", "Router", "decide", "default_router", "route"]
