"""dvc.yaml names the code that makes the prepared data: a module that it lacks could change and the
data stay. dvc.yaml and prefect.yaml name the data sets of params.yaml.
"""

import ast
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from shops import write_beir
from typer.testing import CliRunner

from ospo.cli import app
from ospo.config import FORMATS, load_config
from ospo.data.stages import listed, stage_entries, write_stages
from ospo.errors import ConfigError

DATA = ROOT / "ospo" / "data"
# Parameters are named one by one; these hold no rule of preparation.
ELSEWHERE = {
    "ospo/data/__init__.py", "ospo/errors.py", "ospo/files.py",
}  # fmt: skip


def _imported(module: Path) -> set[Path]:
    names = {
        node.module
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ospo.data.")
    }
    return {DATA / f"{name.rpartition('.')[2]}.py" for name in names}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_module_of_preparation_is_a_dependency(kind):
    config = load_config(ROOT / "params.yaml", [f"data.shop={{format: {kind}, raw: there}}"])
    item = stage_entries(config)["prepare"]["shop"]
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["prepare"]
    listed = set()
    for dependency in stage["do"]["deps"]:
        for name, value in item.items():
            dependency = dependency.replace(f"${{item.{name}}}", value)
        assert dependency not in listed, f"{dependency} twice: DVC refuses that"
        listed.add(dependency)
    found, todo = set(), {DATA / Path(item["reader"]).name, DATA / "writer.py"}
    while todo:
        found |= todo
        todo = {file for module in todo for file in _imported(module)} - found
    wanted = {file.relative_to(ROOT).as_posix() for file in found} - ELSEWHERE
    assert len(wanted) > 10
    assert wanted | {"ospo/data/prepare.py", "ospo/data/formats.py"} <= listed
    assert {"${data.shop.raw}"} < listed
    missing = [name for name in listed if name.startswith("ospo/") and not (ROOT / name).exists()]
    assert not missing


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml", "prefect.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    write_beir(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def _added_lines(project: Path, name: str) -> list[str]:
    """Lines of a file that are not in the repository's; every line of that must be in the file."""
    before = (ROOT / name).read_text(encoding="utf-8").splitlines()
    after = (project / name).read_text(encoding="utf-8").splitlines()
    kept = [line for line in before if line not in after]
    assert [line for line in kept if "foreach: [" not in line] == []
    return [line for line in after if line not in before]


def test_the_repositorys_files_name_its_data_sets(project):
    assert write_stages(load_config()) == []
    assert listed() == ["esci", "hm"]


def test_a_data_set_is_added_to_three_files_and_nothing_else_changes(project):
    assert "dvc repro vectors@my-shop" in _run(
        *"data add my-shop --format beir --raw raw --set splits=drawn".split()
    )
    assert _added_lines(project, "params.yaml") == [
        "  my-shop:",
        "    format: beir",
        "    raw: raw",
        "    splits: drawn",
    ]
    assert load_config().datasets == ["esci", "hm", "my-shop"]
    assert len(_added_lines(project, "dvc.yaml")) == 3
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert stages["prepare"]["foreach"]["my-shop"]["reader"] == "ospo/data/beir.py"
    assert "my-shop" not in stages["sample"]["foreach"]
    for stage in ("profile", "vectors"):
        assert stages[stage]["foreach"] == ["esci", "hm", "my-shop"]
    deployments = yaml.safe_load((project / "prefect.yaml").read_text())["deployments"]
    by_name = {item["name"]: item for item in deployments}
    made = by_name["nightly-my-shop"]
    assert made["parameters"] == {"dataset": "my-shop"}
    assert made["schedules"] == [{"cron": "0 6 * * *", "timezone": "UTC"}]
    for key in ("entrypoint", "concurrency_limit", "work_pool"):
        assert made[key] == by_name["nightly-esci"][key]
    assert len(_added_lines(project, "prefect.yaml")) == 5  # the rest of its lines stood before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("esci --format beir --raw raw", r"data\.esci: is there already"),
        ("split --format beir --raw raw", r"data\.split: is there already"),
        ("Shop --format beir --raw raw", "'Shop' cannot name a data set"),
        ("../shop --format beir --raw raw", r"'\.\./shop' cannot name a data set"),
        ("shop --format bier --raw raw", "unknown format bier. Fix: choose one of esci, hm, beir"),
        ("shop --format beir --raw nowhere", "nowhere: folder not found"),
        ("shop --format trec --raw raw", r"documents\.jsonl: file not found"),
        ("shop --format beir --raw raw --set splitz=drawn", r"data\.shop\.splitz: unknown key"),
        ("shop --format beir --raw raw --set splits=odd", r"data\.shop\.splits: Input should be"),
    ],
)
def test_what_cannot_be_added_changes_nothing(project, words, says):
    before = {file.name: file.read_bytes() for file in project.iterdir() if file.is_file()}
    with pytest.raises(Exception, match=says):
        _run("data", "add", *words.split())
    assert {f.name: f.read_bytes() for f in project.iterdir() if f.is_file()} == before


@pytest.mark.parametrize("command", ["sft", "train", "evaluate", "register", "report"])
def test_a_name_that_params_does_not_know_is_refused_before_anything_is_made(project, command):
    with pytest.raises(ConfigError, match=r"names no data set 'esc'\. Fix: did you mean 'esci'"):
        _run(command, "--dataset", "esc")
    done = CliRunner().invoke(app, [command, "--dataset", "../esci"])
    assert done.exit_code == 2
    assert "cannot name a data set" in done.output
    assert not (project / "runs").exists()
    assert not (project.parent / "esci").exists()


def test_stages_follow_params_edited_by_hand(project):
    text = (project / "params.yaml").read_text()
    begin, end = text.index("  hm:\n"), text.index("  split: ")
    (project / "params.yaml").write_text(
        text[:begin] + "  other: {format: beir, raw: raw}\n" + text[end:]
    )
    assert _run("data", "stages") == "wrote dvc.yaml and prefect.yaml\n"
    assert listed() == ["esci", "other"]
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert list(stages["sample"]["foreach"]) == ["esci"]
    names = [
        item["name"]
        for item in yaml.safe_load((project / "prefect.yaml").read_text())["deployments"]
    ]
    assert names[:2] == ["nightly-esci", "nightly-other"]
    assert "nightly-hm" not in names
    assert _run("data", "stages") == "dvc.yaml and prefect.yaml list these data sets\n"


def test_no_code_lists_the_two_names():
    """Formats have these names too: only where a format is defined may one stand, and where a recipe
    is for one.
    """
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for room in ("ospo", "flows", "servers")
        for file in sorted((ROOT / room).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if '"esci"' in line or '"hm"' in line
    ]
    places = [line.partition(":")[0] for line in found]
    assert places == ["ospo/config/data.py"] * 2 + ["flows/recipe.py"] * 2
