"""Makes the shipped TF-IDF router from data/curated/routing*.jsonl: `python data/make_router.py [FOLDER]`.

Needs scikit-learn. Writes tfidf.json and tfidf.manifest.json into the package, or into FOLDER.
"""

import sys
from pathlib import Path

from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing.learned import HERE
from afs_mlx.pipelines.route_train import DATA, MakeRouterConfig, data_files, make_router


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    data = data_files(Path(__file__).parents[1] / DATA)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    # The workspace of nobody: a person's own experts are no part of what is shipped.
    experts = Catalog.load(Workspace(Path("/nonexistent"))).experts
    result = make_router(MakeRouterConfig(data, folder, experts), lambda step: say(step.text))
    say(str(result.path))
    for name, value in result.figures["tfidf"].items():
        say(f"  {name} {value}")


if __name__ == "__main__":
    main()
