"""dvc.yaml names the code that makes the prepared data: a module that it lacks could change and the
data stay.
"""

import ast
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

DATA = ROOT / "ospo" / "data"
# Parameters are named one by one; these two hold no rule of preparation.
ELSEWHERE = {"ospo/data/__init__.py", "ospo/errors.py", "ospo/files.py"}


def _imported(module: Path) -> set[Path]:
    names = {
        node.module
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ospo.data.")
    }
    return {DATA / f"{name.rpartition('.')[2]}.py" for name in names}


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_every_module_of_preparation_is_a_dependency(dataset):
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["prepare"]
    items = stage["foreach"][dataset]
    listed = set()
    for dependency in stage["do"]["deps"]:
        for name, value in items.items():
            dependency = dependency.replace(f"${{item.{name}}}", value)
        listed.add(dependency.replace("${key}", dataset))
    found, todo = set(), {DATA / f"{dataset}.py", DATA / "writer.py"}
    while todo:
        found |= todo
        todo = {file for module in todo for file in _imported(module)} - found
    wanted = {file.relative_to(ROOT).as_posix() for file in found} - ELSEWHERE
    assert len(wanted) > 10
    assert wanted | {"ospo/data/prepare.py"} <= listed
    missing = [name for name in listed if name.startswith("ospo/") and not (ROOT / name).exists()]
    assert not missing
