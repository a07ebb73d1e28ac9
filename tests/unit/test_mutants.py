"""The list of mutants fits the code: a mistake that no longer applies would never be noticed."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.mutants import Mutant, forks, mutants
from benchmarks.mutants.__main__ import Runner


@pytest.mark.parametrize("mutant", mutants(), ids=lambda m: f"{m.group}: {m.name}")
def test_a_mutant_fits_the_code(mutant: Mutant, tmp_path: Path) -> None:
    file = tmp_path / mutant.file
    file.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / mutant.file, file)
    mutant.apply(tmp_path)
    assert file.read_text() != (ROOT / mutant.file).read_text()
    assert bool(mutant.tests) != bool(mutant.equivalent)
    for word in mutant.tests.split():
        assert word.startswith("-") or (ROOT / word.partition("::")[0]).exists(), word


def test_names_are_unique() -> None:
    names = [(mutant.group, mutant.name) for mutant in mutants()]
    assert len(names) == len(set(names))


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """Tests of a tree of two modules, without the packages that take seconds to import."""
    (tmp_path / "ospo").mkdir()
    (tmp_path / "ospo/__init__.py").write_text("")
    (tmp_path / "ospo/rule.py").write_text("LIMIT = 3\n\n\ndef fits(n):\n    return n <= LIMIT\n")
    (tmp_path / "conftest.py").write_text("import ospo.rule\n")
    (tmp_path / "test_rule.py").write_text(
        "from ospo.rule import fits\n\n\ndef test_limit():\n    assert fits(3) and not fits(4)\n"
    )
    made = Runner(tmp_path, seconds=20, heavy=False)
    yield made
    made.close()


def _mistake(old: str, new: str) -> Mutant:
    return Mutant("rule", "a mistake", "ospo/rule.py", old, new, "test_rule.py")


@pytest.mark.parametrize(
    ("old", "new", "caught"),
    [
        ("n <= LIMIT", "n < LIMIT", "FAILED test_rule.py::test_limit"),
        ("n <= LIMIT", "4 > n", ""),
        ("LIMIT = 3\n", "LIMIT = LIMITS\n", "pytest failed"),  # at import, where conftest meets it
        ("    return n", "    while True: pass\n    return n", "not done within"),
    ],
)
def test_a_mistake_is_caught_by_the_tree_it_is_in(
    runner: Runner, old: str, new: str, caught: str
) -> None:
    runner.seconds = 20 if caught[:3] != "not" else 3
    before = (runner.folder / "ospo/rule.py").read_text()
    why = runner.caught_by(_mistake(old, new))
    assert why.startswith(caught)
    assert bool(why) == bool(caught)
    assert (runner.folder / "ospo/rule.py").read_text() == before
    assert runner.first_failure("test_rule.py") == ""  # nothing of the mistake is left behind


def test_tests_that_fail_without_a_mistake_catch_nothing(runner: Runner) -> None:
    (runner.folder / "test_rule.py").write_text("def test_broken():\n    assert 0\n")
    with pytest.raises(RuntimeError, match="without any mistake: FAILED"):
        runner.caught_by(_mistake("n <= LIMIT", "n < LIMIT"))


def test_no_test_at_all_is_an_error(runner: Runner) -> None:
    (runner.folder / "test_rule.py").write_text("")
    with pytest.raises(RuntimeError, match="exits with 5"):
        runner.caught_by(_mistake("n <= LIMIT", "n < LIMIT"))


def test_what_is_imported_beforehand_is_installed_and_not_ours() -> None:
    tops = {name.partition(".")[0] for name in forks.HEAVY}
    assert [name for name in sorted(tops) if find_spec(name) is None] == []
    assert not tops & {"ospo", "tests", "flows", "servers", "benchmarks", "conftest"}
