"""The command line: exit codes, where lines go, and that each option reaches what it names."""

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from registry_shop import Shop
from typer.testing import CliRunner

from ospo import doctor, registry, tracking
from ospo.cli import app, main
from ospo.config import load_config
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.fetch import SOURCES
from ospo.evaluation.hits import FirstHits
from ospo.policy.text import REWRITE

PARAMS = str(ROOT / "params.yaml")


def settings(*overrides: str) -> list[str]:
    return ["--params", PARAMS, *(part for one in overrides for part in ("--set", one))]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The whole program: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def program(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["ospo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield program
    signal.signal(signal.SIGTERM, before)


def test_a_mistake_of_the_user_is_one_line_on_stderr_and_exit_code_2(run: Any) -> None:
    code, out, err = run("config", "show", *settings("reward.kk=1"))
    assert (code, out) == (2, "")
    assert err.startswith("ospo: ")
    assert err.count("\n") == 1
    assert run("config", "show", *settings())[0] == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --dataset esci --algorithm foo", "--algorithm: 'foo' is not one of 'rft'"),
        ("train --dataset esci --algorithm foo", "'ospo'. Fix: choose one of these\n"),
        ("train --dataset A/B", "--dataset: 'A/B' cannot name a data set. Fix: use a-z"),
        (
            "train --datset esci",
            "--datset: no such option. Fix: did you mean --dataset or --set?\n",
        ),
        ("train --nonsense", "--nonsense: no such option. Fix: `ospo train --help` says"),
        ("train --dataset", "--dataset: requires an argument. Fix: write one after --dataset\n"),
        ("export esci", "--to: is missing. Fix: add --to DIR (the folder to write)\n"),
        ("export --to x", "NAME: is missing. Fix: add NAME (a data set or model"),
        ("config set", "KEY=VALUE...: is missing. Fix: add KEY=VALUE... (such as reward.k=20)\n"),
        ("page --port 99999", "--port: must be less than or equal to 65535. Fix: `ospo page"),
        ("page --port x", "--port: must be a valid integer. Fix: `ospo page --help` says"),
        ("data check a b", "got unexpected extra argument(s) (b). Fix: `ospo data check --help`"),
        ("exprt", "no such command 'exprt'. Fix: did you mean 'export'"),
        ("nosuch", "no such command 'nosuch'. Fix: `ospo --help` says what it takes\n"),
        ("train --dataset \x1b[31m\nX", "--dataset: '\\x1b[31m\\nX' cannot name a data set"),
        ("data check a \x1b[31m\nb", "got unexpected extra argument(s) ("),
    ],
)
def test_a_wrong_option_is_one_line(run: Any, line: str, says: str) -> None:
    code, out, err = run(*line.split(" "))
    assert (code, out) == (2, "")
    assert err.startswith("ospo: ")
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    assert says in err
    assert err.count(" Fix: ") == 1


@pytest.mark.parametrize("words", [[], ["config"], ["data"]])
def test_a_group_by_itself_shows_its_help(run: Any, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (2, "")
    assert "Commands" in out


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("flows.recipe", "--seeds a", "--seeds: 'a' is no list of seeds. Fix: write whole numbers"),
        ("flows.recipe", "--seeds=-1", "--seeds: '-1' is no list of seeds. Fix: write whole"),
        ("flows.recipe", "--seeds=0,", "--seeds: '0,' is no list of seeds. Fix: write whole"),
        ("flows.recipe", "--format x", "--format: invalid choice: 'x'"),
        ("flows.recipe", "", "required: --format, --raw. Fix: `python -m flows.recipe --help`"),
        ("flows.demo", "--nonsense", "unrecognized arguments: --nonsense. Fix: `python -m flows"),
        ("servers.__main__", "upp", "action: invalid choice: 'upp'"),
    ],
)
def test_a_wrong_argument_of_the_jobs_is_one_line(
    module: str,
    line: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [module, *line.split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("ospo: ")
    assert printed.err.count("\n") == printed.err.count(" Fix: ") == 1
    assert says in printed.err


def test_the_recipe_reads_seeds() -> None:
    from flows.recipe import _seeds

    assert _seeds("2,0, 1,2") == [2, 0, 1]


def test_a_bug_is_a_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    monkeypatch.setattr(sys, "argv", ["ospo", "doctor"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main()


def test_a_place_that_cannot_be_written_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/a")

    monkeypatch.setattr(doctor, "examine", refused)
    assert run("doctor")[::2] == (
        2,
        "ospo: /data/a: permission denied. Fix: make it accessible to this user, or work in "
        "another folder\n",
    )


@pytest.mark.parametrize(("levels", "code"), [(["ok"], 0), (["ok", "warn"], 0), (["fail"], 1)])
def test_doctor_fails_for_failures_alone(
    run: Any, monkeypatch: pytest.MonkeyPatch, levels: list[Any], code: int
) -> None:
    found = [doctor.Finding(level, "what", "do this") for level in levels]
    monkeypatch.setattr(doctor, "examine", lambda _params: found)
    assert run("doctor")[0] == code


def test_data_check_exits_with_1_for_problems(esci_raw: Path, tmp_path: Path, run: Any) -> None:
    code, out, err = run("data", "check", str(esci_raw), "--params", PARAMS)
    assert (code, err) == (0, "")
    assert "raw esci" in out
    (tmp_path / "shopping_queries_dataset_examples.parquet").write_bytes(b"no parquet")
    code, _, err = run("data", "check", str(tmp_path), "--params", PARAMS)
    assert code == 1
    assert err.startswith("problem: ")
    code, _, err = run("data", "check", PARAMS, "--params", PARAMS)
    assert code == 2
    assert err == f"ospo: {PARAMS}: is a file. Fix: name the folder that it lies in: {ROOT}\n"


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_prepare_takes_the_folder_that_the_parameters_name(
    dataset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    raw = request.getfixturevalue(f"{dataset}_raw")
    other = {"esci": "hm", "hm": "esci"}[dataset]
    named = [f"data.{dataset}.raw={raw}", f"data.{other}.raw={tmp_path}/none"]
    done = CliRunner().invoke(
        app, ["prepare", dataset, "--out", str(tmp_path / "out"), *settings(*TINY, *named)]
    )
    assert done.exit_code == 0, done.output
    data = load_prepared(tmp_path / "out")
    assert f"{len(data.item_ids)} items" in done.output
    assert f"{len(data.requests)} requests" in done.output


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_options_that_say_nothing_without_a_policy_are_refused(run: Any, option: str) -> None:
    code, _, err = run("evaluate", "--dataset", "hm", option, "x", *settings())
    assert code == 2
    assert err.startswith("ospo: --data, --out: need --policy. Fix: ")


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (["evaluate"], "--policy"),
        (["evaluate", "--policy", "a=b"], "--data"),
        (["report"], "--evaluation"),
    ],
)
def test_a_missing_data_set_is_named_once(run: Any, words: list[str], other: str) -> None:
    fix = f"name one of params.yaml's, or give {other}"
    assert run(*words, *settings())[::2] == (2, f"ospo: --dataset: is missing. Fix: {fix}\n")


def test_rewrite_takes_queries_or_a_file(run: Any) -> None:
    for more in ([], ["--input", "x", "lamp"]):
        code, _, err = run("rewrite", "--dataset", "hm", *more, *settings())
        assert code == 2
        assert err.startswith("ospo: --input: takes the place of queries. Fix: ")


def test_what_can_be_described_is_a_data_set_or_a_folder(
    run: Any, hm_tiny: PreparedData, tmp_path: Path
) -> None:
    """No name is told a stage of dvc.yaml that it cannot have."""
    code, _, err = run("data", "describe", "nope", "--params", PARAMS)
    assert code == 2
    assert "data: names no data set 'nope'. Fix: name one of esci, hm" in err
    none = tmp_path / "none"
    for words in (
        ["data", "describe", "nope", "--data"],
        ["vectors", "hm", *settings(), "--out", str(tmp_path / "out"), "--prepared"],
        ["compare", "raw", "raw", "--dataset", "hm", *settings(), "--data"],
        ["evaluate", "--policy", "a=b", *settings(), "--data"],
    ):
        code, _, err = run(*words, str(none))
        assert code == 2
        fix = "name a folder that `ospo prepare` wrote"
        assert err == f"ospo: {none}: folder not found. Fix: {fix}\n"
    page = ["--html", str(tmp_path / "page.html")]
    code, out, _ = run("data", "describe", "mine", "--data", str(hm_tiny.directory), *page)
    assert code == 0
    assert "wrote" in out
    code, _, err = run("data", "describe", "mine", "--data", PARAMS)
    assert (code, err.partition(". Fix")[0]) == (2, f"ospo: {PARAMS}: is a file, not a folder")


def test_the_help_of_fetch_names_what_it_fetches() -> None:
    done = CliRunner().invoke(app, ["data", "fetch", "--help"])
    assert "esci or hm, whose official files are fetched" in " ".join(done.output.split())
    assert set(SOURCES) == {"esci", "hm"}


@pytest.mark.parametrize("reads", [0, 2])
def test_the_champion_rewrites_a_request_with_its_history_and_hits(
    workspace: Path, hm_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    asked: list[Any] = []

    class Double:
        """Stands in for a loaded champion."""

        answer = REWRITE
        hits = reads

        def __init__(self, _config: object, dataset: str):
            self.dataset = dataset

        def rewrite(self, inputs: list[Any]) -> list[str]:
            asked.append((self.dataset, inputs))
            return ["red dress"]

    monkeypatch.setattr(registry, "champion_rewriter", Double)
    request = next(r for r in hm_tiny.requests if len(r.history) > 1)
    words = ["explain", "--dataset=hm", "--retriever=bm25"]
    words += ["--set=retrievers.training=bm25", "--set=retrievers.unseen=[static]"]
    done = CliRunner().invoke(
        app,
        [*words, f"--request={request.request_id}", *settings()],
    )
    assert done.exit_code == 0, done.output
    history = [{"name": p.name, "type": p.type, "colour": p.colour} for p in request.history]
    expected: dict[str, Any] = {"query": request.query, "history": history}
    if reads:  # as evaluation shows them: of the whole catalogue
        config = load_config(PARAMS, ["retrievers.training=bm25", "retrievers.unseen=[static]"])
        [titles] = FirstHits(config, hm_tiny, {})([request])
        expected["hits"] = list(titles)
    assert asked == [("hm", [expected])]
    assert "red dress" in done.output


def test_the_named_version_becomes_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    for seed in (1, 2, 3):
        shop.register(seed=seed)
    store = settings(f"tracking.uri={shop.config.tracking.uri}")
    for words, says in (
        (["promote", "--version", "2"], "version 2 is the champion"),
        (["promote"], "version 3 is the champion"),
        (["rollback"], "version 2 is the champion again"),
    ):
        done = CliRunner().invoke(app, [*words, "--dataset", "esci", *store])
        assert done.exit_code == 0, done.output
        assert says in done.output
    assert registry.champion(shop.config, "esci").version == 2


def test_rewriting_says_where_the_raw_query_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    version = shop.register("sft", seed=1)
    store = settings(f"tracking.uri={shop.config.tracking.uri}")

    def said() -> str:
        words = ["rewrite", "--dataset", "esci", "lamp", *store]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.stdout.count("\n") == 1  # the search text alone
        return done.stderr

    assert "raw query is better" not in said()  # on held-out requests it is not
    for name, value in (("minilm", "0.500000"), ("bm25", "0.100000")):
        client = tracking.store.MlflowClient(shop.config.tracking.uri)
        key = f"raw_ndcg_at_10.{name}"
        assert key in version.tags
        client.set_model_version_tag(version.name, "1", key, value)
    line = said()
    assert "the raw query is better than version 1 on held-out requests of esci" in line
    assert "nDCG@10 under minilm (0.500 against 0.420). Next: `ospo models`, then" in line
    assert "`ospo rollback --dataset esci`" in line
    # What the weekly check on fresh data found counts for more.
    figures = {"raw": {"minilm": 0.4, "bm25": 0.6}, "champion": {"minilm": 0.5, "bm25": 0.5}}
    registry.tag(shop.config, "esci", 1, "fresh", {"figures": figures, "at": "2026-11-26"})
    assert "on fresh data (of 2026-11-26) of esci: nDCG@10 under bm25 (0.600" in said()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["report", "--dataset", "hm"], "evaluate --dataset hm"),
        (["report", "--evaluation", "x"], "evaluate --dataset NAME --policy NAME=PATH --out x"),
        (["evaluate", "--dataset", "hm"], "sft --dataset hm"),
        (["register", "--dataset", "hm"], "evaluate --dataset hm"),
        (["promote", "--dataset", "hm"], "register --dataset hm"),
        (["export", "hm", "--to", "x"], "register --dataset hm"),
        (["rewrite", "--dataset", "hm", "x"], "promote --dataset hm"),
        (["train", "--dataset", "hm"], "dvc repro vectors@hm"),
        (["explain", "--dataset", "hm", "--request", "x"], "dvc repro vectors@hm"),
        (["data", "describe", "hm", "--params", PARAMS], "dvc repro vectors@hm"),
        (["vectors", "hm", "--out", "x"], "dvc repro prepare@hm"),
    ],
)
def test_an_error_names_the_next_command(
    words: list[str], command: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = run(*words, *([] if "--params" in words else settings()))
    assert code == 2
    assert f"{command}`" in err.partition("Fix:")[2]


def test_a_table_that_is_missing_is_prepared_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/prepared/hm").mkdir(parents=True)
    code, _, err = run("vectors", "hm", "--out", "x", *settings())
    assert code == 2
    place = "data/prepared/hm/catalogue.parquet"
    assert err == f"ospo: {place}: file not found. Fix: run `dvc repro prepare@hm`\n"


def test_what_fetch_says_comes_next_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ospo.data.fetch.fetch", lambda *_, **__: [tmp_path / "articles.csv"])
    done = CliRunner().invoke(app, ["data", "fetch", "hm", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    *_, line = done.output.splitlines()
    program, *words = line.removeprefix("Next: ").split()
    assert program == "ospo"
    params = tmp_path / "params.yaml"
    params.write_text(Path(PARAMS).read_text())
    assert CliRunner().invoke(app, [*words, "--params", str(params)]).exit_code == 0
    assert load_config(params).data.hm.raw == str(tmp_path)
