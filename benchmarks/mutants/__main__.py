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
from pathlib import Path

from benchmarks.mutants import Mutant, forks, mutants
from ospo.files import sha256_file, sha256_json

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".benchmarks" / "mutants.jsonl"
COPIED = ("ospo", "flows", "servers", "tests", "benchmarks", "docs", "configs")
NOT_RUN = (3, 5, forks.OUTSIDE)  # pytest's internal error, no tests; another ospo was tested
SECONDS = 900  # a mutant that makes its tests hang is caught
# tests/conftest.py sets the same, too late for packages that are imported already.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


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


class Runner:
    """Runs pytest in a copy of the tree, each time in a fork that has the heavy packages imported
    already (:mod:`benchmarks.mutants.forks`).
    """

    def __init__(self, folder: Path, seconds: float = SECONDS, heavy: bool = True):
        """``seconds``: how long one run may take. ``heavy`` false imports nothing beforehand."""
        self.folder, self.seconds = folder.resolve(), seconds
        self.unchanged: set[str] = set()  # tests seen to pass without any mistake
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["OSPO_SHARED"] = os.environ.get("OSPO_SHARED", str(ROOT.parent / "shared"))
        self._process = subprocess.Popen(
            [sys.executable, forks.__file__, *(forks.HEAVY if heavy else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | ENVIRONMENT,
            text=True,
        )

    def close(self) -> None:
        """End the process that forks."""
        self._process.communicate()

    def first_failure(self, tests: str) -> str:
        """The first failing test of pytest's arguments ``tests``, or what else ended them; "" where
        all pass. RuntimeError where pytest could not run them.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as output:
            job = {
                "tests": tests,
                "folder": str(self.folder),
                "seconds": self.seconds,
                "output": output.name,
            }
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            text = output.read()
        if not answer:
            raise RuntimeError(f"the process that runs the tests ended during {tests}")
        code = json.loads(answer)
        if code is None:
            return f"not done within {self.seconds:g} s"
        if code in NOT_RUN:
            raise RuntimeError(f"pytest {tests} exits with {code}: {text[-500:]}")
        lines = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (lines or ["pytest failed"])[0][:160] if code else ""

    def check_unchanged(self, tests: str) -> None:
        """Raise RuntimeError where ``tests`` fail without any mistake: they would catch
        everything.
        """
        if tests not in self.unchanged:
            if failure := self.first_failure(tests):
                raise RuntimeError(f"without any mistake: {failure}")
            self.unchanged.add(tests)

    def caught_by(self, mutant: Mutant) -> str:
        """The first test that notices the mistake; "" where none does."""
        self.check_unchanged(mutant.tests)
        original = (self.folder / mutant.file).read_text(encoding="utf-8")
        mutant.apply(self.folder)
        try:
            return self.first_failure(mutant.tests)
        finally:
            (self.folder / mutant.file).write_text(original, encoding="utf-8")


def answers(fresh: bool) -> dict[str, dict[str, object]]:
    """What is kept of earlier runs, by key; nothing with ``fresh``."""
    KEPT.parent.mkdir(exist_ok=True)
    if fresh or not KEPT.is_file():
        return {}
    return {row["key"]: row for row in map(json.loads, KEPT.read_text().splitlines())}


def run_all(chosen: list[Mutant], kept: dict[str, dict[str, object]]) -> dict[str, object]:
    """Counts of the chosen mutants and the survivors' names; a line to stderr for each."""
    surviving: list[str] = []
    counts = {"caught": 0, "surviving": 0, "equivalent": 0}
    with tempfile.TemporaryDirectory(prefix="ospo-mutants-") as name:
        copy_tree(Path(name))
        runner = Runner(Path(name))
        for number, mutant in enumerate(chosen, 1):
            if mutant.equivalent:
                counts["equivalent"] += 1
                continue
            key, started = key_of(mutant), time.monotonic()
            if key not in kept:
                kept[key] = {"key": key, "why": runner.caught_by(mutant)}
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
        runner.close()
    return counts | {"survivors": surviving}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--group", default="", help="one of the files' names")
    parser.add_argument("--name", default="", help="only mutants whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="run all, whatever is kept")
    arguments = parser.parse_args()
    chosen = [m for m in mutants(arguments.group) if arguments.name in m.name]
    found = run_all(chosen, answers(arguments.fresh))
    print(json.dumps(found))
    sys.exit(bool(found["survivors"]))


if __name__ == "__main__":
    main()
