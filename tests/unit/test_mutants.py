"""The list of mutants fits the code: a mistake that no longer applies would never be noticed."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.mutants import Mutant, mutants


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
