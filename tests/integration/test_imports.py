"""Who may import whom, and the pins whose breakage nothing else would show."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

# From the bottom up: a room imports from rows below its own only, not from its neighbours either.
ROWS = (
    {"ospo", "errors", "paths", "hosts", "endings", "distributed", "credit"},
    {"files", "metrics", "integrations"},
    {"config"},
    {"data", "tracking"},
    {"policy", "retrieval", "servers"},
    {"reward", "serving"},
    {"evaluation", "training"},
    {"registry"},
    {"reports", "doctor"},
    {"steps"},
    {"page", "api"},
    {"cli", "flows"},
)
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
# Packages of an extra that the library imports, and the one file that does, where they are used.
OPTIONAL = {
    "opensearchpy": "ospo/retrieval/engine_clients.py",
    "elasticsearch": "ospo/retrieval/engine_clients.py",
}
SOURCES = sorted(p for top in ("ospo", "servers", "flows") for p in (ROOT / top).rglob("*.py"))
# Declared for another reason than an import of ours.
NOT_IMPORTED = {
    "spacy": "what the tagger's package loads and runs",
    "gguf": "transformers reads GGUF files by it",
    "wordllama": "its wheel holds the static embeddings, which are read as a file",
    "psycopg2-binary": "SQLAlchemy's driver of PostgreSQL",
    "prefect-kubernetes": "Prefect's worker of that kind",
    "mkdocs-material": "a theme", "mkdocstrings": "a plug-in of mkdocs",
    "cyclonedx-bom": "a command", "detect-secrets": "a command", "pip-audit": "a command",  # pragma: allowlist secret
    "mypy": "a command", "ruff": "a command", "pytest-timeout": "a plug-in of pytest",
    "moto": "its server is started as a command",
}  # fmt: skip


def imports_of(file: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str:
    """``ospo.reward.search`` → ``reward``, ``flows.demo`` → ``flows``."""
    top, *rest = module.split(".")
    return rest[0] if top == "ospo" and rest else top


def modules() -> dict[str, Path]:
    """Dotted name → file, of the project's own modules."""
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in SOURCES
    }


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_arrow_points_upward(file):
    own = room(next(name for name, path in modules().items() if path == file))
    others = {room(name) for name in imports_of(file) if name in modules()} - {own}
    assert own in ROW, f"{own} stands in no row"
    assert not {other for other in others if ROW[other] >= ROW[own]}, f"imported by {own}"


def test_no_module_imports_itself_through_others():
    """Imports inside functions counted too."""
    known = modules()
    graph = {
        name: {
            found
            for found in imports_of(path) & set(known)
            # `from ospo.credit import x` in a module of ospo.credit names the package as well
            if found != name and not name.startswith(found + ".")
        }
        for name, path in known.items()
        if path.name != "__init__.py"  # a package offers its modules' names
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared_and_the_other_way_round():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {_plain(re.match(r"[\w.-]+", text)[0]) for text in requirements}  # type: ignore[index]

    runtime = names(project["dependencies"])
    extras = set().union(*map(names, project["optional-dependencies"].values())) - {"ospo"}
    distributions = packages_distributions()

    def imported(folders: tuple[str, ...]) -> dict[str, set[str]]:
        files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
        tops = set().union(*(imported_modules(file) for file in files))
        here = {"ospo", "servers", "flows", "benchmarks"} | {
            path.stem for path in (ROOT / "tests").rglob("*.py")
        }
        tops -= here | set(sys.stdlib_module_names)
        return {top: {_plain(name) for name in distributions.get(top, [top])} for top in tops}

    inside = imported(("ospo", "servers", "flows"))
    everywhere = imported(("ospo", "servers", "flows", "benchmarks", "tests"))
    assert {top for top, dists in inside.items() if not dists & runtime} == set(OPTIONAL)
    assert not {top for top, dists in everywhere.items() if not dists & (runtime | extras)}
    used = set().union(*everywhere.values())
    unused = (runtime | extras) - used - set(NOT_IMPORTED)
    assert not unused
    imported_after_all = set(NOT_IMPORTED) & used
    assert not imported_after_all


@pytest.mark.parametrize("package", sorted(OPTIONAL))
def test_optional_packages_are_imported_where_they_are_used(package):
    """Nothing else imports them, and their own file does so within functions only."""
    own = ROOT / OPTIONAL[package]
    assert [file for file in SOURCES if package in imported_modules(file)] == [own]
    top = [
        node
        for node in ast.parse(own.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not [node for node in top if package in ast.unparse(node)]


def imported_modules(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(file)}


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


def test_the_package_offers_its_functions_and_imports_them_late():
    code = (
        "import sys, ospo; heavy = {'torch', 'trl', 'mlflow', 'spacy', 'polars', 'numpy', 'pydantic'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert {'prepare', 'train', 'evaluate', 'rewrite', 'explain', 'export'} <= set(dir(ospo));"
        "assert all(callable(getattr(ospo, name)) for name in ospo._OFFERED);"
        "assert not {'torch', 'mlflow'} & set(sys.modules);"
        "assert not hasattr(ospo, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import ospo.api

    stub = (ROOT / "ospo/__init__.pyi").read_text()
    assert set(re.findall(r"import (\w+) as", stub)) == set(ospo.__dict__["_OFFERED"])
    assert set(ospo.__dict__["_OFFERED"]) <= set(ospo.api.__all__)


def test_the_command_line_starts_without_heavy_imports():
    """`ospo --help` must answer at once."""
    code = (
        "import sys, ospo.cli; heavy = {'torch', 'trl', 'mlflow', 'spacy', 'polars'} & "
        "set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_line_answers_within_half_a_second():
    """Processor time of the whole program, the first of ten tries that does: a busy machine slows
    some of them down.
    """
    command = [sys.executable, "-m", "ospo.cli", "--help"]

    def seconds() -> float:
        before = os.times()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    assert any(seconds() < 0.5 for _ in range(10))


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
