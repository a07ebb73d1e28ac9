"""Who may import whom, and the pins whose breakage nothing else would show."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "file", sorted((ROOT / "ospo").rglob("*.py")), ids=lambda f: f.relative_to(ROOT).as_posix()
)
def test_the_library_calls_neither_prefect_nor_dvc(file):
    assert not imported_modules(file) & {"prefect", "dvc"}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "ospo").rglob("*.py")), ids=lambda f: f.relative_to(ROOT).as_posix()
)
def test_only_tracking_registry_and_serving_import_mlflow(file):
    room = file.relative_to(ROOT / "ospo").parts[0]
    if room not in {"tracking", "serving", "registry", "registry.py", "doctor.py"}:
        assert "mlflow" not in imported_modules(file)


def test_the_command_line_starts_without_heavy_imports():
    """`ospo --help` must answer at once."""
    code = (
        "import sys, ospo.cli; heavy = {'torch', 'trl', 'mlflow', 'spacy', 'polars'} & "
        "set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_prefect_server_can_be_imported():
    """fastapi 0.151 and later break it while `pip check` passes; SQLAlchemy 2.1 keeps schedules
    from firing.
    """
    import sqlalchemy

    done = subprocess.run(
        [sys.executable, "-c", "from prefect.server.api.server import create_app; create_app()"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert sqlalchemy.__version__.startswith("2.0.")


@pytest.mark.parametrize("name", ["pipeline", "train", "evaluate", "champion_check"])
def test_deployment_entrypoints_load(name):
    import yaml
    from prefect.flows import load_flow_from_entrypoint

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    entrypoints = {d["entrypoint"] for d in deployments if d["entrypoint"].split(".")[1] == name}
    assert entrypoints, f"prefect.yaml deploys nothing from flows/{name}.py"
    for entrypoint in entrypoints:
        assert load_flow_from_entrypoint(entrypoint).name


def test_evaluation_does_without_the_trainer():
    """Reports, comparisons and explanations are made on machines that never train."""
    modules = "sys, ospo.reports.explain, ospo.evaluation.evaluate, ospo.reports.evaluation"
    code = f"import {modules};sys.exit('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
