"""The documentation runs: Python blocks and `ospo` commands of README and docs, as they stand, in a
folder where the whole job was run on small shops.

The ESCI shop has its default size, because the documentation names one of its requests.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MICRO, ROOT
from documentation import PAGES, Command, commands, name, python_blocks
from typer.testing import CliRunner

from ospo.config import edit_params

# Not run, although checked: beginning of the command -> why.
ONLY_CHECKED = {
    "ospo data add NAME": "test_shop_page.py adds data sets of each kind",
    "ospo data fetch": "downloads gigabytes; test_data_fetch.py has a server of its own",
    "ospo doctor": "its answer depends on this machine; test_doctor.py",
    "ospo train --dataset esci --set presets.mine": "the preset is the reader's; test_docs.py reads it",
    "ospo export esci --to adapter": "the shop's policies are no adapters; test_export.py",
    "ospo export esci --to exported/again": "sends it to a hub; test_export.py has a double of one",
    "ospo --help": "test_docs.py runs it",
    "ospo page": "serves until it is ended; test_page_browser.py",
    "ospo sft --dataset $d": "minutes of a real model's training, in a loop of the shell",
    "ospo train --dataset $d": "likewise",
    "ospo evaluate --dataset $d": "likewise",
}
SHOP_PAGE = "docs/howto/shop.md"  # one story in its own folder: test_shop_page.py
# Python that is not run: a piece of it -> why.
NOT_RUN: dict[str, str] = {}
# What a reader has to fill in, and what the commands' own paths are here.
FILLED = {
    "/data/my-shop": "data/sample/esci",
    "DIR/esci": "data/sample/esci",
    "DIR/hm": "data/sample/hm",
    "--out DIR": "--out scratch",
    "DIR": "elsewhere/esci",
    "…": "elsewhere/esci",
    "DATASET": "esci",
    "NAME": "ospo",
}
LEFT = ("sample.esci.", "data.pool.")  # of MICRO: the ESCI shop as the documentation has it

Ospo = Callable[..., str]


def call(*words: str) -> str:
    """What `ospo WORDS` prints; fails with what it printed where its exit code is not 0."""
    from ospo.cli import app

    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documentation's job was run, small: two registered ESCI policies, an
    SFT policy of H&M with its registered version, answers of another system.
    """
    folder = tmp_path_factory.mktemp("documentation")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    kept = [value for value in MICRO if not value.startswith(LEFT)]
    edit_params([*kept, "evaluation.resamples=200"], Path("params.yaml"))
    for dataset in ("esci", "hm"):
        call("sample", dataset, "--out", f"data/sample/{dataset}")
        call("prepare", dataset, "--out", f"data/prepared/{dataset}")
    small = ["--set", "sample.esci.queries=60", "--set", "sample.esci.products=400"]
    call("sample", "esci", "--out", "elsewhere/esci", "--set", "seed=7", *small)
    for seed, (dataset, algorithm) in enumerate(
        [("hm", "ospo"), ("esci", "grpo"), ("esci", "ospo")]
    ):
        # A seed each: untrained as they are, two algorithms may end at the same weights, which
        # would be one version, and there would be nothing to roll back to.
        also = ["--dataset", dataset, "--set", f"seed={seed}"]
        call("sft", *also)
        call("train", "--algorithm", algorithm, *also)
        also += ["--set", f"algorithms=[{algorithm}]"]
        call("evaluate", *also)
        call("register", *also)
        call("promote", *also)
    call("evaluate", "--dataset", "esci")
    answers(folder)
    call(*"evaluate --policy mine=runs/esci/ospo --dataset esci --out tables".split())
    patch.undo()
    return folder


def answers(folder: Path) -> None:
    """answers.jsonl: every request's query, as another system's answer; queries.csv: two."""
    import json

    from ospo.data.dataset import load_prepared

    data = load_prepared(folder / "data/prepared/esci")
    lines = [
        json.dumps({"request_id": request.request_id, "answer": request.query})
        for request in data.requests
    ]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    (folder / "queries.csv").write_text("query\nwatch for cycling to work\nred dress\n")


@pytest.fixture
def here(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, entered."""
    monkeypatch.chdir(shop)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(str(shop))
    return shop


def to_run() -> list[Command]:
    """`ospo` commands with arguments, each once whichever pages show it."""
    found = {
        command.text: command
        for command in commands()
        if command.words[0] == "ospo"
        and not command.mention
        and command.page != SHOP_PAGE
        and not command.text.startswith(tuple(ONLY_CHECKED))
    }
    return list(found.values())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", to_run(), ids=lambda c: f"{c.page}: {c.text}"[:90])
def test_a_command_runs(command: Command, here: Path) -> None:
    text = command.text
    for placeholder, value in FILLED.items():
        text = re.sub(rf"(?<!\w){re.escape(placeholder)}(?!\w)", value, text)
    words = Command(command.page, text, True).words[1:]
    if words[:2] == ["config", "set"]:  # the other commands' parameters stay
        shutil.copy(ROOT / "params.yaml", here / "edited.yaml")
        words += ["--params", "edited.yaml"]
    assert call(*words).strip()
    if "--html" in words:
        assert "<html" in (here / words[words.index("--html") + 1]).read_text()


def asked_and_answered(here: Path) -> list[tuple[str, str]]:
    """Requests of the README, the quickstart and the picture with their search texts: as quoted,
    and as the commands there answer.
    """
    pages = [page for page in PAGES if page.name in ("README.md", "quickstart.md")]
    pairs = []
    for page in pages:
        text = " ".join(page.read_text().split())
        pairs += re.findall(r"\*([^*]+)\* becomes \*([^*]+)\*", text)
    picture = (ROOT / "docs/picture.svg").read_text()
    request, *shown = re.findall(r"<text[^>]*>([^<]*)", picture)
    pairs.append((request.strip("“”"), " ".join(shown)))
    for command in commands():
        asks = command.words[:2] == ["ospo", "rewrite"] and "--input" not in command.words
        if asks and command.page in map(name, pages) and not command.mention:
            answer = call(*command.words[1:]).strip().splitlines()[-1]
            pairs.append((command.words[-1], answer))
    return pairs


def test_each_word_of_a_request_that_is_shown_stands_in_its_answer(here: Path) -> None:
    pairs = asked_and_answered(here)
    assert len(pairs) >= 4
    for request, answer in pairs:
        words = re.findall(r"\w+", request.lower())
        assert len(words) > 2, request
        assert set(words) <= set(re.findall(r"\w+", answer.lower())), (request, answer)


def test_what_is_not_run_is_shown_somewhere() -> None:
    shown = [command.text for command in commands()]
    for beginning in ONLY_CHECKED:
        assert any(text.startswith(beginning) for text in shown), beginning
    blocks = "\n".join(block for page in PAGES for block in python_blocks(page))
    assert all(blocks.count(piece) == 1 for piece in NOT_RUN)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=name)
def test_python_runs(page: Path, here: Path) -> None:
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in python_blocks(page):
        if not any(piece in block for piece in NOT_RUN):
            exec(compile(block, name(page), "exec"), namespace)


def test_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", text, re.DOTALL)
    assert found, "no example with its output"
    exec(compile(found[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == found[2]


def test_the_example_of_a_retriever_ranks(here: Path) -> None:
    from ospo.config import load_config
    from ospo.data.dataset import load_prepared
    from ospo.retrieval import build_retriever

    [block] = python_blocks(ROOT / "docs/retrievers.md")
    (here / "overlap.py").write_text(block)
    data = load_prepared("data/prepared/esci")
    retriever = build_retriever("overlap:WordOverlap", load_config(), data)
    [scores_P] = retriever.score([data.item_texts[3]], [[3, 4, 5]])
    assert scores_P[0] > max(scores_P[1:])


def test_a_path_means_the_same_in_every_command(here: Path) -> None:
    """A run's folder and the model folder within it, for `evaluate --policy` and for `compare`."""
    import polars as pl

    from ospo.policy.rules import RULES

    for folder in ("runs/esci/ospo", "runs/esci/ospo/model"):
        call("evaluate", "--policy", f"p={folder}", "--dataset", "esci", "--out", "given")
        call("compare", "raw", folder, "--dataset", "esci", "--out", "compared")
    given = pl.read_parquet("given/answers.parquet").filter(pl.col("policy") == "p")
    compared = pl.read_parquet("compared/answers.parquet")
    compared = compared.filter(~pl.col("policy").is_in(list(RULES)))
    assert given["answer"].to_list() == compared["answer"].to_list()


def test_the_quoted_rewriting_is_a_request_of_the_shop(here: Path) -> None:
    from ospo.data.dataset import load_prepared
    from ospo.reports.explain import find_request

    data = load_prepared("data/prepared/esci")
    find_request(data, "trousers for a school trip")  # raises where there is none
    row = find_request(data, "watch for cycling to work")  # README, docs/picture.svg
    assert data.requests[row].request_id == "924"
