"""Time and memory of preparation at a share of the official size, beside plain pandas.

    python -m benchmarks.prepare --dataset hm --scale 1.0
    python -m benchmarks.prepare --dataset esci --scale 0.05 --pandas-scale 0.05

Raw files are generated once for each scale, below ``.cache/benchmarks``. Each preparation runs in its own process,
limited to two threads; ``peak_mb`` is that process's highest resident memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        raise SystemExit(result.stderr.strip().splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


def _raw(dataset: str, scale: float, cache: Path) -> tuple[Path, float]:
    from benchmarks.raw_files import write_esci, write_hm

    folder = cache / f"{dataset}-{scale:g}"
    begin = time.perf_counter()
    (write_esci if dataset == "esci" else write_hm)(folder, scale)
    return folder, time.perf_counter() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", choices=["esci", "hm"], required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the official size")
    parser.add_argument("--pandas-scale", type=float, default=0.0, help="also run pandas at this scale (0: not)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()

    raw, generated = _raw(arguments.dataset, arguments.scale, arguments.cache)
    print(f"raw files of {arguments.dataset} at scale {arguments.scale:g}: {generated:.0f} s to generate", flush=True)
    figures: dict[str, Any] = {
        "dataset": arguments.dataset,
        "scale": arguments.scale,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "raw_mb": sum(file.stat().st_size for file in raw.iterdir()) >> 20,
        **_measure("polars", arguments.dataset, raw),
    }
    if arguments.pandas_scale:
        small, _ = _raw(arguments.dataset, arguments.pandas_scale, arguments.cache)
        ours = figures if arguments.pandas_scale == arguments.scale else _measure("polars", arguments.dataset, small)
        plain = _measure("pandas", arguments.dataset, small)
        figures["pandas"] = {
            "scale": arguments.pandas_scale,
            **{name: plain[name] for name in ("seconds", "cpu_seconds", "peak_mb")},
            "ours_at_this_scale": {name: ours[name] for name in ("seconds", "cpu_seconds", "peak_mb")},
            "seconds_at_scale_1_extrapolated": round(plain["seconds"] / arguments.pandas_scale),
        }
        figures["ratio_vs_pandas"] = round(plain["seconds"] / ours["seconds"], 1)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
