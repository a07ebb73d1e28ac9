"""Time and memory of preparation at a share of the official size, beside plain pandas.

    python -m benchmarks.prepare --dataset hm --scale 1.0
    python -m benchmarks.prepare --dataset esci --scale 0.1 --pandas-scale 0.1

Raw files are generated once for each scale, below ``.cache/benchmarks``. Each preparation runs in
its own process, limited to two threads; ``peak_mb`` is that process's highest resident memory.
pandas runs at a scale that it manages in minutes; ``ratio_vs_pandas`` compares the two at that same
scale, and what is extrapolated says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import finish, machine, progress, start

PANDAS_SCALE = {"esci": 0.1, "hm": 0.02}
QUICK_SCALE = 0.01

_CHILD = """
import json, re, resource, sys, time
from pathlib import Path
kind, dataset, raw, out = sys.argv[1:]
from ospo.config import load_config
config = load_config("params.yaml")
if kind == "polars":
    from ospo.data.prepare import prepare
    begin = time.perf_counter()
    rows = prepare(dataset, raw, out, config)
else:
    import benchmarks.prepare_pandas as plain
    begin = time.perf_counter()
    rows = getattr(plain, f"prepare_{dataset}")(Path(raw), Path(out), config)
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: a child inherits its parent's.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) // 1024
print(json.dumps({
    "seconds": round(time.perf_counter() - begin, 2),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
    "peak_mb": peak,
    "rows": rows,
}))
"""


def _measure(kind: str, dataset: str, raw: Path) -> dict[str, Any]:
    environment = os.environ | {"POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "2"}
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        command = [sys.executable, "-c", _CHILD, kind, dataset, str(raw), str(Path(folder) / "out")]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
    if result.returncode:
        raise SystemExit(result.stderr.strip().splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def _raw(dataset: str, scale: float, cache: Path) -> tuple[Path, float]:
    from benchmarks.raw_files import write_esci, write_hm

    folder = cache / f"{dataset}-{scale:g}"
    begin = time.perf_counter()
    (write_esci if dataset == "esci" else write_hm)(folder, scale)
    return folder, time.perf_counter() - begin


def run(dataset: str, scale: float, pandas_scale: float, cache: Path) -> dict[str, Any]:
    """The figures of one dataset; ``pandas_scale`` 0: without the baseline."""
    raw, generated = _raw(dataset, scale, cache)
    progress(f"raw files of {dataset} at scale {scale:g}: {generated:.0f} s to generate")
    figures: dict[str, Any] = {
        "dataset": dataset,
        "scale": scale,
        "machine": machine(),
        "raw_mb": sum(file.stat().st_size for file in raw.iterdir()) >> 20,
        **_measure("polars", dataset, raw),
    }
    progress(f"prepared in {figures['seconds']} s, peak {figures['peak_mb']} MiB")
    if not pandas_scale:
        return figures
    small, _ = _raw(dataset, pandas_scale, cache)
    ours = figures if pandas_scale == scale else _measure("polars", dataset, small)
    progress(f"at scale {pandas_scale:g} in {ours['seconds']} s; now pandas")
    plain = _measure("pandas", dataset, small)
    figures["pandas"] = {
        "scale": pandas_scale,
        **{name: plain[name] for name in ("seconds", "cpu_seconds", "peak_mb")},
        "ours_at_this_scale": {name: ours[name] for name in ("seconds", "cpu_seconds", "peak_mb")},
        "seconds_at_scale_1_extrapolated": round(plain["seconds"] / pandas_scale),
    }
    figures["ratio_vs_pandas"] = round(plain["seconds"] / ours["seconds"], 1)
    if pandas_scale != scale:  # 1: linear; below: better than linear
        figures["growth_over_linear"] = round(
            figures["seconds"] / ours["seconds"] / (scale / pandas_scale), 2
        )
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", choices=["esci", "hm"], default="esci")
    parser.add_argument("--scale", type=float, help="share of the official size (default: 1.0)")
    parser.add_argument(
        "--pandas-scale", type=float, help="scale of the pandas baseline (0: without it)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument(
        "--quick", action="store_true", help=f"scale {QUICK_SCALE:g} for both, in seconds"
    )
    arguments = parser.parse_args()
    scale = arguments.scale or (QUICK_SCALE if arguments.quick else 1.0)
    pandas_scale = arguments.pandas_scale
    if pandas_scale is None:
        pandas_scale = min(scale, PANDAS_SCALE[arguments.dataset])
    finish(run(arguments.dataset, scale, pandas_scale, arguments.cache))


if __name__ == "__main__":
    start(main)
