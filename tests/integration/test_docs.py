"""The documentation says what the code says: quoted errors are the real ones, commands and files
exist.
"""

import ast
import re
import shlex

import pytest
import yaml
from conftest import ROOT

from ospo.config import load_config

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def messages() -> list[str]:
    """Every text of the source, with … for what is filled in; and the Makefile's."""
    found = [re.sub(r"\$\([A-Z]+\)", "…", (ROOT / "Makefile").read_text())]
    for file in [
        file for room in ("ospo", "flows", "servers") for file in (ROOT / room).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "…", node.value))
    return found


def quoted() -> list[str]:
    """The lines that troubleshooting quotes."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    return [line.strip("`").strip() for line in re.findall(r"^(`.*`)\n:   ", text, re.MULTILINE)]


def test_troubleshooting_quotes_enough() -> None:
    assert len(quoted()) >= 14


@pytest.mark.parametrize("line", quoted())
def test_a_quoted_error_is_in_the_code(line: str) -> None:
    assert any(line in message for message in messages()), line


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"[a-z/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }


def test_make_targets_and_commands_that_are_named_exist() -> None:
    from typer.main import get_command

    from ospo.cli import app

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    for page in PAGES:
        text = page.read_text()
        code = re.findall(r"`([^`\n]+)`|^ {4,}(\S.*)$", text, re.MULTILINE)
        for snippet in (first or second for first, second in code):
            for target in re.findall(r"^make ([a-z-]+)", snippet):
                assert target in targets, f"{page.name}: make {target}"
            for command in re.findall(r"^(?:\.venv/bin/)?ospo ([a-z][a-z-]*)", snippet):
                assert command in commands, f"{page.name}: ospo {command}"


def shown_commands() -> list[str]:
    """The ``ospo`` command lines of code blocks, without prompts, comments and brackets."""
    found = set()
    for page in PAGES:
        for line in re.findall(
            r"^(?: {4,})?(?:\.venv/bin/)?(ospo [a-z].*)$", page.read_text(), re.MULTILINE
        ):
            found.add(
                re.sub(r"[\[\]]", "", re.sub(r" +#.*", "", line)) if "'" not in line else line
            )
    return sorted(found)


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_that_is_shown_has_arguments_that_the_command_line_takes(line: str) -> None:
    from typer.main import get_command

    from ospo.cli import app

    words = shlex.split(line.replace("DATASET", "esci"), comments=True)[1:]
    command = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # raises what the user would be told


def test_the_preset_of_the_guide_is_whole() -> None:
    [text] = re.findall(
        r"```yaml\n(policy: mine\n.*?)```", (ROOT / "docs/howto/model.md").read_text(), re.DOTALL
    )
    mine = yaml.safe_load(text)["presets"]["mine"]
    config = load_config(
        ROOT / "params.yaml", [f"presets.mine={yaml.safe_dump(mine)}", "policy=mine"]
    )
    assert config.preset.model.source == "path:/models/qwen-0.5b"


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:configs|tests|ospo|flows|benchmarks)/[\w./-]+\.\w+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
