"""TREC files hold what the report says: read back by ir_measures, with its own formulas."""

from pathlib import Path

import evaluation_shop as shop
import ir_measures
import polars as pl
import pytest
from typer.testing import CliRunner

from ospo.cli import app
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.trec import read_facts, relevance_scale, write_trec
from ospo.files import read_json, write_json

FIGURES = {
    "ndcg@10": "nDCG@10",
    "ndcg@50": "nDCG@50",
    "rr": "RR",
    "ap": "AP",
    "recall@20": "R@20",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("trec") / "shop")


@pytest.fixture(scope="module")
def evaluation(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems' answers, one of them empty now and then, under two retrievers."""
    folder = tmp_path_factory.mktemp("trec")
    for name, text in (("mine", "red dress"), ("odd name/1", "")):
        rows = [
            f'{{"request_id": "{r.request_id}", "answer": "{text or r.query * (n % 3 > 0)}"}}'
            for n, r in enumerate(data.requests)
        ]
        (folder / f"{name[:3]}.jsonl").write_text("\n".join(rows))
    out = folder / "evaluation"
    policies = {"mine": folder / "min.jsonl", "odd name/1": folder / "odd.jsonl"}
    evaluate(shop.config(), data, policies, out, cache=None)
    return out


def test_ir_measures_finds_the_reports_figures(
    data: PreparedData, evaluation: Path, tmp_path: Path
) -> None:
    files = write_trec(shop.config(), data, evaluation, tmp_path / "trec")
    facts = read_facts(tmp_path / "trec")
    table = pl.read_parquet(evaluation / "evaluation.parquet").filter(
        (pl.col("split") == "test") & (pl.col("decoding") == "greedy")
    )
    assert len(files) == len(facts["runs"]) == len(table.unique(["policy", "retriever", "scope"]))
    assert {fact["scope"] for fact in facts["runs"]} == {"pool", "catalogue"}
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "trec/qrels")))
    assert facts["scale"] == 100 or facts["scale"] == 10
    for fact in facts["runs"]:
        run = list(ir_measures.read_trec_run(str(tmp_path / "trec/runs" / fact["file"])))
        measures = [ir_measures.parse_measure(text) for text in FIGURES.values()]
        found = ir_measures.calc_aggregate(measures, qrels, run)
        rows = table.filter(policy=fact["policy"], retriever=fact["retriever"], scope=fact["scope"])
        for name, measure in zip(FIGURES, measures, strict=True):
            assert found[measure] == pytest.approx(rows[name].mean(), abs=1e-6), (fact, name)
    summary = read_json(evaluation / "summary.json")["test"]
    assert summary["odd name/1"]["bm25"] > 0, "answers that are not empty"


def test_relevances_are_whole_numbers_in_the_gains_proportion() -> None:
    assert relevance_scale([0.0, 1.0, 2.0]) == 1
    assert relevance_scale([0.0, 0.01, 0.1, 1.0]) == 100
    assert relevance_scale([0.25, 1.0]) == 100
    assert relevance_scale([1 / 3]) == 1_000_000


def test_a_folder_that_exists_is_refused_and_replaced_by_force(
    data: PreparedData, evaluation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trec"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(InputError, match="--force"):
        write_trec(shop.config(), data, evaluation, out)
    assert (out / "precious").exists()
    write_trec(shop.config(), data, evaluation, out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["qrels", "runs", "trec.json"]
    with pytest.raises(InputError, match="holds no evaluation"):
        write_trec(shop.config(), data, tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_data_and_ids_with_spaces_are_refused(
    data: PreparedData, evaluation: Path, tmp_path: Path
) -> None:
    other = shop.write_shop(tmp_path / "other", requests=60)
    with pytest.raises(InputError, match="not of this prepared data"):
        write_trec(shop.config(), other, evaluation, tmp_path / "trec")
    spaced = shop.write_shop(tmp_path / "spaced")
    object.__setattr__(
        spaced, "catalogue", spaced.catalogue.with_columns(item_id="a b" + pl.col("item_id"))
    )
    with pytest.raises(InputError, match="white space"):
        write_trec(shop.config(), spaced, evaluation, tmp_path / "trec")
    assert not (tmp_path / "trec").exists()


def test_the_command_writes_them(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f'{{"request_id": "{r.request_id}", "answer": "red"}}' for r in data.requests]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    common = [
        "evaluate", "--policy", f"mine={tmp_path / 'answers.jsonl'}", "--data", str(data.directory),
        "--out", str(tmp_path / "out"), "--trec", str(tmp_path / "trec"), "--params",
        str(shop.ROOT / "params.yaml"), "--set", "retrievers.training=bm25", "--set",
        "retrievers.unseen=[static]", "--set", "evaluation.catalogue=false",
    ]  # fmt: skip
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    assert "qrels and runs in" in done.output
    assert (tmp_path / "trec/qrels").is_file()
    write_json(tmp_path / "out" / "summary.json", {})
    again = CliRunner().invoke(app, common)
    assert isinstance(again.exception, InputError) or again.exit_code == 2
    assert read_json(tmp_path / "out" / "summary.json") == {}, "refused before the work"
