"""What the README says is what happens."""

import re
import subprocess
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_credit_example_prints_what_it_says():
    found = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", README, re.DOTALL)
    assert found, "no example with its output"
    done = subprocess.run([sys.executable, "-c", found[1]], capture_output=True, text=True)
    assert done.stdout == found[2], done.stderr


def test_every_make_target_and_command_it_names_exists():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"make (?!\.)([a-z]+)\b(?= |$|`)", README)) <= targets | {"it"}
    named = set(re.findall(r"ospo ([a-z]+)\b", README))
    shown = subprocess.run(
        [sys.executable, "-m", "ospo.cli", "--help"], capture_output=True, text=True
    ).stdout
    known = {word for word in named if re.search(rf"\b{word}\b", shown)}
    assert {"rewrite", "config"} <= known


def test_every_file_it_links_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
