"""Search of a whole catalogue by vectors: HNSW against flat, over vectors mapped from their file.

    python -m benchmarks.index                     # 200,000 items
    # ESCI's official size: 2.8 GB of vectors, minutes to build the graph
    python -m benchmarks.index --items 1800000

The vectors are made up: unit vectors in clusters of about 200 with the spread that MiniLM's item
vectors show (a neighbour in the cluster has a cosine of about 0.6). Queries are of two kinds: near
an item, as a search text that names its product, and far from every cluster, the worst case for a
graph. They are written with ``ospo.retrieval.vectors``, by another process, below
``.cache/benchmarks``; memory is read from /proc: ``private_mb`` counts what the process
allocated, ``peak_mb`` also pages of the mapped file, which the system reclaims when needed.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress, start
from ospo.retrieval.index import HnswIndex, flat_search
from ospo.retrieval.vectors import CHUNK, load_vectors, write_resumably

DIMENSIONS, CLUSTER, SPREAD = 384, 200, 0.8
TOP = (10, 100, 1000)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _centres(items: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(
        (max(items // CLUSTER, 1), DIMENSIONS), dtype=np.float32
    )


def _chunk(centres: np.ndarray, begin: int, end: int) -> np.ndarray:
    random = np.random.default_rng(1 + begin // CHUNK)
    noise = random.standard_normal((end - begin, DIMENSIONS), dtype=np.float32)
    return (
        np.round(
            _unit(centres[random.integers(len(centres), size=end - begin)] + SPREAD * noise) * 2**20
        )
        / 2**20
    )


def write(path: Path, items: int) -> None:
    """Write the made-up vectors, unless they are written already."""
    centres = _centres(items)
    ids = [f"B{n:09d}" for n in range(items)]
    write_resumably(path, ids, lambda begin, end: _chunk(centres, begin, end), f"made up {items}")


def _memory() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()

    def mib(field: str) -> int:
        found = re.search(field + r":\s+(\d+)", status)
        return int(found[1]) // 1024 if found else 0

    return {"peak_mb": mib("VmHWM"), "private_mb": mib("RssAnon")}


def _recall(found_BK: np.ndarray, exact_BK: np.ndarray, k: int) -> float:
    pairs = zip(found_BK[:, :k].tolist(), exact_BK[:, :k].tolist(), strict=True)
    return round(float(np.mean([len(set(a) & set(b)) / k for a, b in pairs])), 4)


def measure(
    vectors_ID: np.ndarray, queries: int, efforts: list[int], graph: bool = True
) -> dict[str, Any]:
    """Search flat; build the graph, search it too, and compare."""
    items = len(vectors_ID)
    random = np.random.default_rng(99)
    rows = np.sort(random.choice(items, queries, replace=False))
    noise = random.standard_normal((queries, DIMENSIONS), dtype=np.float32)
    asked = {"near": _unit(vectors_ID[rows] + 0.04 * noise), "far": _unit(noise)}
    memory = {"loaded": _memory()}
    flat: dict[str, Any] = {}
    exact = {}
    for kind, texts_BD in asked.items():
        begin = time.perf_counter()
        exact[kind], _ = flat_search(vectors_ID, texts_BD, max(TOP))
        flat[f"ms_{kind}"] = round((time.perf_counter() - begin) / queries * 1e3, 2)
        progress(f"flat, {kind}: {flat[f'ms_{kind}']} ms a query")
    memory["flat"] = _memory()
    begin, reported, work = time.perf_counter(), 0.0, time.process_time()

    def tell(done: int) -> None:
        nonlocal reported
        if time.perf_counter() - reported > 20:
            reported = time.perf_counter()
            progress(f"graph: {done:,} of {items:,} items after {reported - begin:.0f} s")

    if not graph:
        return {"flat": flat, "memory": memory}
    index = HnswIndex(vectors_ID, progress=tell)
    build, work = time.perf_counter() - begin, time.process_time() - work
    memory["graph"] = _memory()
    searches = []
    for kind, texts_BD in asked.items():
        for k in TOP:
            for effort in efforts:
                begin = time.perf_counter()
                found, _ = index.search(texts_BD, k, effort)
                figures = {
                    "queries": kind,
                    "k": k,
                    "effort": effort,
                    "ms": round((time.perf_counter() - begin) / queries * 1e3, 2),
                    "recall": _recall(found, exact[kind], k),
                }
                searches.append(figures)
                progress(str(figures))
    saved = next(s["ms"] for s in searches if s["queries"] == "near" and s["k"] == max(TOP))
    return {
        "flat": flat,
        "build_seconds": round(build, 1),
        "build_cpu_seconds": round(work, 1),
        "hnsw": searches,
        "queries_that_pay_for_the_graph": round(build * 1e3 / max(flat["ms_near"] - saved, 1e-3)),
        "memory": memory,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--efforts", type=int, nargs="+", default=[0], help="efSearch; 0: the default"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="20,000 items")
    parser.add_argument("--flat-only", action="store_true", help="build no graph")
    parser.add_argument("--write-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    items = 20_000 if arguments.quick else arguments.items
    path = arguments.cache / f"index-{items}" / "vectors.safetensors"
    if arguments.write_only:
        write(path, items)
        return
    if not path.exists():
        progress(f"writing {items:,} vectors to {path}")
        command = [
            sys.executable,
            "-m",
            "benchmarks.index",
            "--items",
            str(items),
            "--cache",
            str(arguments.cache),
        ]
        subprocess.run([*command, "--write-only"], check=True)
    before = _memory()
    begin = time.perf_counter()
    vectors_ID = load_vectors(path, f"made up {items}", items)
    if vectors_ID is None:
        raise SystemExit(f"{path}: holds other vectors. Fix: delete it")
    seconds = round(time.perf_counter() - begin, 2)
    progress(f"mapped and checked in {seconds} s")
    result = {
        "items": items,
        "dimensions": DIMENSIONS,
        "file_mb": path.stat().st_size >> 20,
        "load_seconds": seconds,
        **measure(vectors_ID, arguments.queries, arguments.efforts, not arguments.flat_only),
        "machine": machine(),
    }
    result["memory"]["before"] = before
    finish(result)


if __name__ == "__main__":
    start(main)
