"""Run the mutants: each in a copy of the tree, with the tests that should notice.

    python -m benchmarks.mutants                      # all of them: an hour or two
    python -m benchmarks.mutants --group credit
    python -m benchmarks.mutants --name discount      # those whose name holds the word

Prints a line per mutant to stderr and one JSON object as its last line: caught, surviving,
equivalent. Exit code 1 where one survives. Answers are kept in ``.benchmarks/mutants.jsonl`` by the
content of mutant, file and tests, so that a run that was stopped resumes; ``--fresh`` runs all.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from benchmarks.mutants import Mutant, mutants
from ospo.files import sha256_file, sha256_json

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".benchmarks" / "mutants.jsonl"
COPIED = ("ospo", "flows", "servers", "tests", "benchmarks", "docs", "configs")
SECONDS = 900  # a mutant that makes its tests hang is caught


def copy_tree(target: Path) -> None:
    """The sources and tests, and the files at the top that tests read."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("mlflow.db"):
            shutil.copyfile(file, target / file.name)
    # Git's own files are needed by tests of what is committed.
    if (ROOT / ".git").exists():
        subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)


def key_of(mutant: Mutant) -> str:
    """Changes where the mutant, the file it changes or its tests change."""
    files = [ROOT / word.partition("::")[0] for word in mutant.tests.split()]
    hashes = [sha256_file(file) for file in [ROOT / mutant.file, *files] if file.is_file()]
    return sha256_json([mutant.name, mutant.old, mutant.new, mutant.tests, hashes])[:20]


def first_failure(tests: str, folder: Path) -> str:
    """The first failing test of pytest's arguments ``tests`` in the copy (or what else ended them);
    "" where all pass. RuntimeError where pytest could not run them.
    """
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OSPO_SHARED"] = os.environ.get("OSPO_SHARED", str(ROOT.parent / "shared"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not gpu", *tests.split()]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done within {SECONDS} s"
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest {tests} exits with {done.returncode}: {done.stdout[-500:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (lines or ["pytest failed"])[0][:160] if done.returncode else ""


@cache
def check_unchanged(tests: str, folder: Path) -> None:
    """Raise RuntimeError where ``tests`` fail without any mistake: they would catch everything."""
    if failure := first_failure(tests, folder):
        raise RuntimeError(f"without any mistake: {failure}")


def caught_by(mutant: Mutant, folder: Path) -> str:
    """The first test that notices the mistake; "" where none does."""
    check_unchanged(mutant.tests, folder)
    original = (folder / mutant.file).read_text(encoding="utf-8")
    mutant.apply(folder)
    try:
        return first_failure(mutant.tests, folder)
    finally:
        (folder / mutant.file).write_text(original, encoding="utf-8")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--group", default="", help="one of the files' names")
    parser.add_argument("--name", default="", help="only mutants whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="run all, whatever is kept")
    arguments = parser.parse_args()
    chosen = [m for m in mutants(arguments.group) if arguments.name in m.name]
    KEPT.parent.mkdir(exist_ok=True)
    kept: dict[str, dict[str, object]] = {}
    if KEPT.is_file() and not arguments.fresh:
        kept = {row["key"]: row for row in map(json.loads, KEPT.read_text().splitlines())}
    surviving: list[str] = []
    counts = {"caught": 0, "surviving": 0, "equivalent": 0}
    with tempfile.TemporaryDirectory(prefix="ospo-mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        for number, mutant in enumerate(chosen, 1):
            if mutant.equivalent:
                counts["equivalent"] += 1
                continue
            key, started = key_of(mutant), time.monotonic()
            if key not in kept:
                kept[key] = {"key": key, "why": caught_by(mutant, folder)}
                with KEPT.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(kept[key]) + "\n")
            verdict = "caught" if kept[key]["why"] else "surviving"
            counts[verdict] += 1
            if verdict == "surviving":
                surviving.append(f"{mutant.group}: {mutant.name}")
            seconds = time.monotonic() - started
            print(
                f"{number}/{len(chosen)} {verdict:9} {seconds:5.0f} s  {mutant.group}: "
                f"{mutant.name}  {kept[key]['why']}",
                file=sys.stderr,
                flush=True,
            )
    print(json.dumps(counts | {"survivors": surviving}))
    sys.exit(bool(surviving))


if __name__ == "__main__":
    main()
