"""The documentation says what the code says: links lead somewhere, quoted errors are the real ones,
commands and files exist, and figures of significance are the library's.
"""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import Page, chromium
from conftest import ROOT
from documentation import PAGES, Command, anchors, commands, links, name, python_blocks

from ospo.config import load_config
from ospo.evaluation.statistics import seed_test

# Programs that are not part of the project: nothing here can hold what is written about them.
OTHERS = {
    "apt-get": "the system's packages",
    "createuser": "PostgreSQL's own; test_scaling.py starts a PostgreSQL server of its own",
    "createdb": "as createuser",
    "curl": "test_serving_http.py sends such bodies to a real server",
    "git": "version control of the reader's clone",
    "pip": "installs packages",
    "set": "the shell's",
    "export": "the shell's",
    "cd": "the shell's",
    "for": "the shell's; the commands inside the loop are checked",
    "trl": "`trl vllm-serve` needs vLLM, which needs a GPU",
}


@cache
def messages(*folders: str) -> list[str]:
    """Every text of the source below ``folders``, with … for what is filled in; and the
    Makefile's.
    """
    found = [re.sub(r"\$\([A-Z]+\)", "…", (ROOT / "Makefile").read_text())]
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values
                    ]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%(?:\.\d)?[sdrfg]", "…", node.value).replace("%%", "%"))
    return found


def quoted(page: str) -> list[str]:
    """The lines that a page quotes as terms of a definition list."""
    text = (ROOT / "docs" / page).read_text()
    return [line.strip("`").strip() for line in re.findall(r"^(`.*`)\n:   ", text, re.MULTILINE)]


def test_errors_are_quoted_enough() -> None:
    assert len(quoted("troubleshooting.md")) >= 26
    assert len(quoted("data.md")) >= 32


@pytest.mark.parametrize("line", quoted("troubleshooting.md"))
def test_a_quoted_error_is_in_the_code(line: str) -> None:
    assert any(line in message for message in messages("ospo", "flows", "servers")), line


@pytest.mark.parametrize("line", quoted("data.md"))
def test_an_error_that_the_page_on_data_quotes_is_one_of_reading(line: str) -> None:
    """It stands in the code that reads data, and tests of that code look for two words of it at
    least.
    """
    assert any(line in message for message in messages("ospo/data")), line
    tests = "".join(file.read_text() for file in sorted((ROOT / "tests/unit").glob("test_data_*")))
    words = line.split()
    pairs = [f"{one} {other}" for one, other in pairwise(words) if "…" not in one + other]
    assert any(pair in tests for pair in pairs), line


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as a site; it builds without a warning."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        ["mkdocs", "build", "--strict", "--quiet", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert (site / "index.html").is_file()


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_the_site_can_be_read_on_a_desk_and_on_a_phone(site: Path) -> None:
    """Code and tables whole at 1,400 px; on a phone a shade where they are cut, and a picture whose
    letters are not specks.
    """
    tab = Page()
    wide = "filter(e => e.scrollWidth > e.clientWidth + 1)"
    boxes = "[...document.querySelectorAll('pre > code, .md-typeset__scrollwrap')]"
    try:
        for page in ("credit", "quickstart", "data"):
            tab.open(site / f"{page}.html", 1400)
            tab.keep(f"site-{page}-1400")
            assert tab.ask(f"{boxes}.{wide}.map(e => e.textContent.slice(0, 60))") == [], page
            tab.open(site / f"{page}.html", 390)
            tab.keep(f"site-{page}-390")
            shades = tab.ask(
                f"{boxes}.{wide}.map(e => getComputedStyle(e).backgroundImage.split('gradient').length)"
            )
            assert set(shades) <= {5}, page
            assert shades, page
        tab.open(site / "index.html", 390)
        tab.keep("site-index-390")
        shown = tab.ask("document.querySelector('img[src$=\"picture.svg\"]').clientWidth")
    finally:
        tab.close()
    picture = (ROOT / "docs" / "picture.svg").read_text()
    drawn, *_ = re.findall(r'viewBox="0 0 (\d+) ', picture)
    sizes = [float(size) for size in re.findall(r"font-size:([\d.]+)px", picture)]
    assert min(sizes) * shown / int(drawn) >= 10


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_its_anchor(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)}: {link}"


def test_readme_links_every_topic() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    topics = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")}
    assert topics - linked == {"docs/index.md"}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_ospo(words: list[str]) -> None:
    from typer.main import get_command

    from ospo.cli import app

    words = [{"DATASET": "esci", "NAME": "ospo", "$d": "esci"}.get(word, word) for word in words]
    command = get_command(app)
    if words == ["--help"]:
        return
    while hasattr(command, "commands"):
        assert words, f"`ospo … {command.name}` needs a command"
        command = command.commands[words.pop(0)]
    if words:  # a bare name mentions the command
        command.make_context(command.name, words)  # raises what the user would be told


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        variable, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"\b{variable}\b", makefile), word
        else:
            assert word in targets(), word


def options_of(module: str) -> set[str]:
    """The options of a module's own parser."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }


def check_python(words: list[str]) -> None:
    assert words[0] == "-m", "only modules are run"
    known = options_of(words[1])
    for word in words[2:]:
        assert not word.startswith("--") or word in known, f"{words[1]} has no {word}"


def check_dvc(words: list[str]) -> None:
    from dvc.cli import parse_args

    if (words != ["remote", "modify", "--local", "…"] and len(words) > 1) or words[0] != "remote":
        if words[:2] == ["remote", "modify"] and len(words) < 5:
            return  # a mention: which remote and what follows
        parse_args([word for word in words if word != "REVISION"])


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words.pop(0) == "launch"
    if not words or words == ["…"]:
        return
    parsed = launch_command_parser().parse_args(words)
    assert parsed.config_file == "…" or (ROOT / parsed.config_file).is_file()
    assert parsed.module
    assert parsed.training_script == "ospo.cli"
    check_ospo(list(parsed.training_script_args))


def check_mlflow(words: list[str]) -> None:
    from mlflow.cli import cli

    command = cli
    while hasattr(command, "commands") and words:
        command = command.commands[words.pop(0)]
    if words:
        command.make_context(command.name, words)


def check_pytest(words: list[str]) -> None:
    files = [word for word in words if word.endswith(".py")]
    assert all((ROOT / file).is_file() for file in files)
    markers = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert words[0] == "-m"
    assert words[1] in markers


@cache
def prefect_help(*command: str) -> str:
    done = subprocess.run(["prefect", *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, f"prefect {' '.join(command)}"
    return done.stdout


def check_prefect(words: list[str]) -> None:
    shown = prefect_help(*words[:2])
    for option in words:
        assert not option.startswith("-") or re.search(rf"{option}\b", shown), option
    if "--base-job-template" in words:
        assert (ROOT / words[words.index("--base-job-template") + 1]).is_file()


CHECKS = {
    "ospo": check_ospo,
    "make": check_make,
    "python": check_python,
    "dvc": check_dvc,
    "accelerate": check_accelerate,
    "mlflow": check_mlflow,
    "pytest": check_pytest,
    "prefect": check_prefect,
}


@pytest.mark.parametrize("command", commands(), ids=lambda c: f"{c.page}: {c.text}"[:90])
def test_a_command_exists_and_takes_what_is_given(command: Command) -> None:
    program, *words = command.words
    if program in CHECKS:
        CHECKS[program](words)
    else:
        assert program in OTHERS


def test_no_exception_is_left_over() -> None:
    assert set(OTHERS) == {c.words[0] for c in commands()} - set(CHECKS)


def test_the_module_of_the_command_line_runs() -> None:
    """`accelerate launch … -m ospo.cli` needs it."""
    done = subprocess.run([sys.executable, "-m", "ospo.cli", "--help"], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_preset_of_the_guide_is_whole() -> None:
    [text] = re.findall(
        r"```yaml\n(policy: mine\n.*?)```", (ROOT / "docs/howto/model.md").read_text(), re.DOTALL
    )
    mine = yaml.safe_load(text)["presets"]["mine"]
    config = load_config(
        ROOT / "params.yaml", [f"presets.mine={yaml.safe_dump(mine)}", "policy=mine"]
    )
    assert config.preset.model.source == "path:/models/qwen-0.5b"


def test_files_and_modules_that_are_named_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for file in re.findall(
            r"`((?:configs|tests|ospo|flows|servers|benchmarks|docs)/[\w./-]+\.\w+)`", text
        ):
            assert "YYYY" in file or (ROOT / file).exists(), f"{name(page)}: {file}"
        for module in re.findall(r"`(ospo(?:\.[a-z_]+)+)", text):
            path = ROOT.joinpath(*module.split("."))
            parents = (path, path.parent)  # the module, or the one that defines the name
            assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in parents), module


# What a native reader stumbles over, and what is written instead.
STUMBLES = {
    r"\b(?:one|an?) (?:row|line|number|value|advantage|file|figure|figures) an? [a-z]+": "per",
    r"\b(?:ms|seconds|tokens|rows|nats|inputs|calls) an? (?:step|call|request|prompt|query)": "per",
    r"\bgoes on where\b": "resumes",
    r"\bput together of\b": "built from",
    r"\bbelongs? into\b": "set it in",
    r"\bin place of none\b": "empty",
    r"\bluck of seeds\b": "not significant over seeds",
    r"\btrap \d|\bspec §": "say the thing itself",
    r"\bat hand\b": "available",
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_plain_english(page: Path) -> None:
    text = page.read_text().replace('"one row a policy"', "")  # CONTRIBUTING quotes it
    for pattern, instead in STUMBLES.items():
        found = re.search(pattern, " ".join(text.split()))
        assert not found, f"{name(page)}: {found[0]!r}; write {instead}"


EXPERIMENTS = sorted((ROOT / "docs/experiments").glob("*.md"))


def test_experiments_are_dated_and_listed_newest_first() -> None:
    page = (ROOT / "docs/experiments.md").read_text()
    listing = page.partition("## All pages, newest first")[2]
    listed = re.findall(r"\]\(experiments/([\w-]+\.md)\)\s*\|\s*(.*?) \|$", listing, re.MULTILINE)
    assert sorted(file for file, _ in listed) == [file.name for file in EXPERIMENTS]
    dates = [file[:10] for file, _ in listed]
    assert dates == sorted(dates, reverse=True)
    for file, status in listed:
        text = (ROOT / "docs/experiments" / file).read_text()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", file[:10])
        begun = re.search(r"\*Status: (current|superseded)", text)
        assert begun, file
        assert file[:10] in text, "the date"
        assert re.search(r"\b[0-9a-f]{7}\b", text), "the commit"
        if begun[1] == "superseded":
            assert "superseded" in status
            assert re.search(r"superseded (?:for [\w ]+ )?by \[", text), "by what"


def over_seeds(file: str, a: str = "ospo", b: str = "grpo") -> tuple[float, float]:
    """Mean difference and the library's p-value over seeds, from a benchmark's figures."""
    found = json.loads((ROOT / "docs/experiments" / file).read_text())["ndcg_by_seed"]
    difference_S = np.array(found[a]) - np.array(found[b])
    return float(difference_S.mean()), float(seed_test(difference_S[:, None])[0])


def short(value: float, digits: int = 3, sign: str = "+") -> str:
    """A figure as the pages write it: +.070, −.008, .0004."""
    return f"{value:{sign}.{digits}f}".replace("0.", ".", 1).replace("-", "−")


@pytest.mark.parametrize("dataset", ["esci", "hm"])
@pytest.mark.parametrize(
    ("kept", "page"), [("expand", "shops-four-seeds"), ("ten", "shops-ten-seeds")]
)
def test_seeds_of_the_shops_are_quoted_as_measured(dataset: str, kept: str, page: str) -> None:
    found = json.loads((ROOT / f"docs/experiments/learning-{dataset}-{kept}.json").read_text())
    text = (ROOT / f"docs/experiments/2026-11-27-{page}.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for policy, rows in found["ndcg_by_seed"].items():
        for retriever, values in rows.items():
            mean = short(float(np.mean(values)), sign="")
            spread = (
                "" if policy == "raw" else f" ± {short(float(np.std(values, ddof=1)), sign='')}"
            )
            assert f"{mean}{spread}" in text, (policy, retriever)
            if kept == "ten" and retriever in ("minilm", "bm25", "static"):
                assert f"{mean}{spread.replace(' ', '')}" in readme, (policy, retriever)
    for other in ("sft", "grpo"):
        for row in found[f"ours_minus_{other}"].values():
            assert short(row["mean"]) in text
            assert f"[{short(row['low'], sign='')}, {short(row['high'], sign='')}]" in text
    if kept == "ten":
        level = found["ours_minus_grpo"].values()
        assert min(row["p_holm"] for row in level) > 0.05, (
            "significant now: README calls them level"
        )
        gain = found["ours_minus_sft"]["minilm"]
        assert f"{short(gain['mean'])} [{short(gain['low'], sign='')}, " in readme


@pytest.mark.parametrize("page", ["docs/experiments.md"])
def test_the_lead_is_what_the_library_says(page: str) -> None:
    text = (ROOT / page).read_text()
    mean, p = over_seeds("learning-hm-100.json")
    assert p > 0.05, "significant now: say so"
    assert f"{mean:+.3f}".replace("0.", ".") in text
    assert f"p = {p:.3f}".replace("0.", ".") in text
    assert re.search(r"not significant", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("2026-11-25-learning-100-steps.md", "learning-hm-100.json"),
        ("2026-11-25-learning-100-steps.md", "learning-esci-100.json"),
        ("2026-11-25-learning-80-steps.md", "learning-hm.json"),
        ("2026-11-25-learning-80-steps.md", "learning-esci.json"),
    ],
)
def test_dated_pages_quote_the_p_values_over_seeds(page: str, file: str) -> None:
    text = (ROOT / "docs/experiments" / page).read_text()
    for other in ("grpo", "sft"):
        mean, p = over_seeds(file, "ospo", other)
        assert f"{mean:+.3f}".replace("0.", ".").replace("-", "−") in text, other
        assert f"{p:.3f}".removeprefix("0") in text, other


def test_python_is_where_the_run_test_looks() -> None:
    assert sum(len(python_blocks(page)) for page in PAGES) >= 8
