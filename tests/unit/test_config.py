"""params.yaml: every wrong key or type is one line that names file, key and fix."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from pydantic import ValidationError

from ospo.config import edit_params, load_config
from ospo.errors import ConfigError

PARAMS = ROOT / "params.yaml"


def test_the_repository_params_load_and_are_frozen():
    config = load_config(PARAMS)
    assert config.preset is config.presets["nano"]
    with pytest.raises(ValidationError):
        config.seed = 1


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("reward.kk=3", "reward.kk", "did you mean 'k'"),
        ("reward.k=ten", "reward.k", "valid integer"),
        ("reward.k=0", "reward.k", "greater than or equal to 1"),
        ("reward=3", "reward", "valid dictionary"),
        ("policy=huge", "policy 'huge'", "nano"),
        ("presets.nano.rl.stepz=3", "presets.nano.rl.stepz", "did you mean 'steps'"),
        (
            "presets.nano.rl.importance_sampling_level=sequence",
            "importance_sampling_level",
            "erases token credit",
        ),
        ("presets.nano.rl.learning_rate=fast", "learning_rate", "valid number"),
        ("presets.nano.model.source=ftp:x", "presets.nano.model.source", "hub:ORG/NAME"),
        ("data.esci.gains={E: 1.0}", "data.esci.gains", "no gain for label"),
        ("data.split.test=0.9", "data.split", "below 1"),
        ("retrievers.unseen=[minilm]", "retrievers", "training retriever"),
        ("nonsense", "nonsense", "KEY=VALUE"),
        ("reward.k.deep=3", "reward.k.deep", "not a section"),
    ],
)
def test_a_bad_override_is_one_line(override, key, says):
    with pytest.raises(ConfigError) as caught:
        load_config(PARAMS, [override])
    line = str(caught.value)
    assert "\n" not in line
    assert "params.yaml" in line
    assert key in line
    assert says in line
    assert "Fix:" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- a list\n", "not a mapping"),
        ("a: [1\n", "not YAML"),
        ("seed: 0\n", "missing"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, says):
    file = tmp_path / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_itself(tmp_path):
    with pytest.raises(ConfigError, match="file not found"):
        load_config(tmp_path / "none.yaml")


def test_editing_keeps_comments_and_refuses_bad_values(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.read_text(encoding="utf-8"), encoding="utf-8")
    edit_params(["reward.k=20", "data.esci.raw=/data/esci"], file)
    text = file.read_text(encoding="utf-8")
    assert "# nDCG@k" in text
    assert load_config(file).reward.k == 20
    assert load_config(file).data.esci.raw == "/data/esci"
    with pytest.raises(ConfigError):
        edit_params(["reward.k=30", "reward.kk=1"], file)
    assert file.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [file]


def test_floats_are_written_so_that_every_yaml_reader_sees_floats():
    """PyYAML, which DVC uses, reads 1e-4 as a string; 1.0e-4 is a float to all."""

    def strings(value):
        if isinstance(value, dict):
            return [s for v in value.values() for s in strings(v)]
        if isinstance(value, list):
            return [s for v in value for s in strings(v)]
        return [value] if isinstance(value, str) else []

    for text in strings(yaml.safe_load(PARAMS.read_text(encoding="utf-8"))):
        with pytest.raises(ValueError, match="could not convert"):
            float(text or "empty")


def test_the_command_exits_with_2_and_one_line(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(
        PARAMS.read_text(encoding="utf-8").replace("  k: 10 ", "  kay: 10 "), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ospo.cli", "config", "show", "--params", str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ospo: ")
    assert "reward.kay" in done.stderr
    assert done.stderr.count("\n") == 1
