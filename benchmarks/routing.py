"""How long a question takes to route: TF-IDF from plain arrays beside scikit-learn's own pipeline and the keywords.

The peer has words, pairs of words and letter groups and no knowledge of assembly; both route one query at a time. The
command's start is beside that of a Python that imports scikit-learn. `python -m benchmarks.routing`.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing import default_router
from afs_mlx.experts.routing.keywords import KeywordRouter
from afs_mlx.experts.routing.learned import HERE, MODEL_FILE, shipped_manifest
from afs_mlx.experts.routing.model import load
from afs_mlx.experts.routing.rows import LabelledQuery, read_rows

STARTS = 5


def main() -> None:
    workspace = Workspace.find()
    rows = read_rows(workspace.find_file("data/curated/routing.jsonl"))
    experts = Catalog.load(workspace).experts
    began = time.perf_counter()
    load(HERE / MODEL_FILE)
    shipped_manifest()
    print(f"routing: model of {(HERE / MODEL_FILE).stat().st_size / 1e3:.0f} kB read in {ms_since(began):.1f} ms")
    tfidf, keywords, peer = default_router(experts), KeywordRouter(experts), fitted_peer(rows)
    ours: list[float] = []
    theirs: list[float] = []
    baseline: list[float] = []
    for row in rows:
        ours.append(timed(lambda row=row: tfidf.routes([row.query])))
        theirs.append(timed(lambda row=row: peer([row.query])))
        baseline.append(timed(lambda row=row: keywords.routes([row.query])))
    for name, times in (("tfidf", ours), ("scikit-learn", theirs), ("keywords", baseline)):
        print(f"  {name:<13} median {statistics.median(times):.2f} ms, p95 {p95(times):.2f} ms, n {len(times)}")
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"  scikit-learn's time over ours, median of pairs: {ratio:.1f}")
    long = [timed(lambda: tfidf.routes(["how many cycles? lda $10,x : " * 10**6])) for _ in range(STARTS)]
    print(f"  28 MB in one query: {statistics.median(long):.0f} ms")
    route = [sys.executable, "-m", "afs_mlx.cli.app", "route", "how many cycles is this?"]
    sides = [(started(route), started([sys.executable, "-c", "import sklearn.linear_model"])) for _ in range(STARTS)]
    ours_s, peer_s = (statistics.median(side) for side in zip(*sides, strict=True))
    print(f"  afs-mlx route, whole command {ours_s:.2f} s; importing scikit-learn alone {peer_s:.2f} s")


def fitted_peer(rows: list[LabelledQuery]) -> Callable[[list[str]], object]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)
    peer = make_pipeline(make_union(words, letters), LogisticRegression(C=4, max_iter=1000))
    peer.fit([row.query for row in rows], [row.expert for row in rows])
    return peer.predict_proba


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return ms_since(began)


def ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def p95(times: list[float]) -> float:
    return sorted(times)[int(0.95 * len(times))]


def started(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
