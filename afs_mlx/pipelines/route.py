"""Questions → experts, by any of the routers. Loads a base for the two that need one, and nothing otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass

from afs_mlx.core.errors import UsageError, closest
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing import Route
from afs_mlx.experts.routing.choosing import DEFAULT_ROUTER, NEED_A_BASE, ROUTERS, router_named
from afs_mlx.schema.expert import DEFAULT_BASE


@dataclass(frozen=True)
class RouteConfig:
    """`base` is for the routers head and mean: a base id, a model folder, or `auto`."""

    queries: Sequence[str]
    catalog: Catalog
    router: str = DEFAULT_ROUTER
    base: str = "auto"


@dataclass(frozen=True)
class RouteResult:
    """One route for each query, in order; `notices` are for the person."""

    routes: list[Route]
    notices: tuple[str, ...] = ()


def route(config: RouteConfig) -> RouteResult:
    """Route every query. Raises UsageError for an unknown router, MissingError where none is fitted for the base."""
    experts = config.catalog.experts
    if config.router not in ROUTERS:
        raise UsageError(f"there is no router {config.router!r}", "--router", closest(config.router, list(ROUTERS)))
    if config.router not in NEED_A_BASE:
        return RouteResult(router_named(config.router, experts).routes(config.queries))
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.experts.routing.head import load_head
    from afs_mlx.experts.routing.learned import shipped_manifest

    found = choose_base(config.base, DEFAULT_BASE, config.catalog.bases)
    head = load_head(found.identity["weights_sha256"], found.id, shipped_manifest().model["sha256"])
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.inference.states import query_states

    loaded = load_base(found.folder)
    router = router_named(
        config.router, experts, head, lambda texts: query_states(loaded, texts, head.fitted.layer).tolist()
    )
    return RouteResult(router.routes(config.queries), tuple(text for text in (found.notice,) if text))
