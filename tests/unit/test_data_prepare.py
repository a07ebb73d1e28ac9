"""Preparation of the sample shops and of the real samples, checked against plain re-computation."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from ospo.config import load_config
from ospo.data.dataset import load_prepared
from ospo.data.hm import article_id
from ospo.data.prepare import prepare

PARAMS = ROOT / "params.yaml"


def _digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def prepared_real(request, tmp_path_factory):
    """(folder of raw files, stats, prepared data) of a real sample, with the default parameters."""

    def make(dataset):
        raw = request.getfixturevalue(f"{dataset}_real")
        out = tmp_path_factory.mktemp("real") / dataset
        stats = prepare(dataset, raw, out, load_config(PARAMS))
        return raw, stats, load_prepared(out)

    return make


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_same_input_same_bytes(dataset, request, tiny_config, tmp_path):
    raw = request.getfixturevalue(f"{dataset}_raw")
    prepare(dataset, raw, tmp_path / "one", tiny_config)
    prepare(dataset, raw, tmp_path / "two", tiny_config)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    assert sorted(_digests(tmp_path / "one")) == [
        *("catalogue.parquet", "pools.parquet", "qrels.parquet", "requests.parquet", "stats.json")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], (
        "no temporary files remain"
    )


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_row_order_of_the_raw_files_does_not_matter(dataset, request, tiny_config, tmp_path):
    raw = request.getfixturevalue(f"{dataset}_raw")
    shuffled = tmp_path / "raw"
    shuffled.mkdir()
    for file in raw.iterdir():
        if file.suffix == ".parquet":
            pl.read_parquet(file).sample(fraction=1, shuffle=True, seed=5).write_parquet(
                shuffled / file.name
            )
        else:
            frame = pl.read_csv(file, infer_schema=False)
            frame.sample(fraction=1, shuffle=True, seed=5).write_csv(shuffled / file.name)
    prepare(dataset, raw, tmp_path / "one", tiny_config)
    prepare(dataset, shuffled, tmp_path / "two", tiny_config)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_seed_changes_split_and_pools(dataset, request, tiny_config, tmp_path):
    raw = request.getfixturevalue(f"{dataset}_raw")
    other = tiny_config.model_copy(update={"seed": 1})
    prepare(dataset, raw, tmp_path / "one", tiny_config)
    prepare(dataset, raw, tmp_path / "two", other)
    one, two = _digests(tmp_path / "one"), _digests(tmp_path / "two")
    assert one["catalogue.parquet"] == two["catalogue.parquet"]
    assert one["pools.parquet"] != two["pools.parquet"]
    assert one["requests.parquet"] != two["requests.parquet"]


def _check_pools(data, size):
    for row, request in enumerate(data.requests):
        pool = data.pools_RP[row]
        assert len(set(pool.tolist())) == min(size, len(data.item_ids)) == len(pool)
        assert request.target_id in {data.item_ids[item] for item in pool[data.gains_RP[row] > 0]}
    qrels = pl.read_parquet(data.directory / "qrels.parquet").filter(pl.col("gain") > 0)
    assert (data.gains_RP > 0).sum() == len(qrels), (
        "every relevant item is in its pool, with its gain"
    )
    assert data.gains_RP.sum() == pytest.approx(qrels["gain"].sum())


def test_esci_tiny(esci_tiny, esci_raw, tiny_config):
    _check_pools(esci_tiny, tiny_config.data.pool.size)
    raw = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")
    qrels = pl.read_parquet(esci_tiny.directory / "qrels.parquet")
    gains = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
    wanted = {
        (str(q), p): (label, gains[label])
        for q, p, label in raw["query_id", "product_id", "esci_label"].rows()
    }
    found = {(q, i): (label, round(gain, 6)) for q, i, gain, label in qrels.rows()}
    assert found == wanted
    sides = defaultdict(set)
    for request in esci_tiny.requests:
        sides[request.query.lower()].add(request.split)
        best = [
            i for (q, i), (_, gain) in wanted.items() if q == request.request_id and gain == 1.0
        ]
        assert request.target_id == min(best)
    assert all(len(side) == 1 for side in sides.values())
    assert len({split for side in sides.values() for split in side}) == 3


def test_judged_products_come_first_among_the_negatives(esci_tiny):
    """A product judged irrelevant for the query stands in its pool."""
    irrelevant = pl.read_parquet(esci_tiny.directory / "qrels.parquet").filter(pl.col("gain") == 0)
    pools = {
        request.request_id: {esci_tiny.item_ids[item] for item in esci_tiny.pools_RP[row]}
        for row, request in enumerate(esci_tiny.requests)
    }
    assert len(irrelevant) > 50
    assert all(
        item in pools[request] for request, item in irrelevant["request_id", "item_id"].rows()
    )


def test_labels_not_chosen_are_hard_negatives_first(esci_raw, tmp_path, tiny_config):
    """The paper's setting: Exact alone is relevant; what was judged S, C or I for the query stands
    in its pool.
    """
    options = tiny_config.data.esci.model_copy(update={"labels": ["E"]})
    pool = tiny_config.data.pool.model_copy(
        update={"size": 30, "hard": 30, "related": 0, "random": 0}
    )
    data = tiny_config.data.model_copy(update={"esci": options, "pool": pool})
    stats = prepare(
        "esci", esci_raw, tmp_path / "out", tiny_config.model_copy(update={"data": data})
    )
    prepared = load_prepared(tmp_path / "out")
    assert set(pl.read_parquet(tmp_path / "out" / "qrels.parquet")["label"]) == {"E"}
    assert stats["dropped"]["judgement_label_not_chosen"] > 100
    raw = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet").filter(
        pl.col("esci_label") != "E"
    )
    others = defaultdict(set)
    for query, item in raw["query_id", "product_id"].rows():
        others[str(query)].add(item)
    judged = 0
    for row, request in enumerate(prepared.requests):
        pool = {prepared.item_ids[item] for item in prepared.pools_RP[row]}
        assert others[request.request_id] <= pool
        judged += len(others[request.request_id])
        assert prepared.gains_RP[row].sum() == (prepared.gains_RP[row] == 1.0).sum() > 0
    assert judged > 100


def test_substitutes_come_before_irrelevant_products(esci_raw, tmp_path, tiny_config):
    """Where the hard places do not hold all that was judged, the nearest misses stay."""
    options = tiny_config.data.esci.model_copy(update={"labels": ["E"]})
    pool = tiny_config.data.pool.model_copy(
        update={"size": 12, "hard": 1, "related": 1, "random": 1}
    )
    data = tiny_config.data.model_copy(update={"esci": options, "pool": pool})
    prepare("esci", esci_raw, tmp_path / "out", tiny_config.model_copy(update={"data": data}))
    prepared = load_prepared(tmp_path / "out")
    raw = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")
    labels = {
        (str(query), item): label
        for query, item, label in raw["query_id", "product_id", "esci_label"].rows()
    }
    short = 0
    for row, request in enumerate(prepared.requests):
        pool = {prepared.item_ids[item] for item in prepared.pools_RP[row]}
        judged = {
            item: label for (query, item), label in labels.items() if query == request.request_id
        }
        held = [label for item, label in judged.items() if item in pool and label != "E"]
        missed = [label for item, label in judged.items() if item not in pool and label != "E"]
        room = 12 - (prepared.gains_RP[row] > 0).sum()
        if len(held) + len(missed) > -(-room // 3) and missed:
            short += 1
            quota = sorted(held, key="SCI".index)[: -(-room // 3)]
            assert max(map("SCI".index, quota)) <= min(map("SCI".index, missed))
    assert short > 5


_CHILD = """
import sys
from ospo.config import load_config
from ospo.data.prepare import prepare
for dataset, raw in (("esci", sys.argv[1]), ("hm", sys.argv[2])):
    prepare(dataset, raw, f"{sys.argv[3]}/{dataset}", load_config("params.yaml"))
"""


def test_threads_do_not_matter(esci_raw, hm_raw, tmp_path):
    found = []
    for threads in ("1", "3"):
        out = tmp_path / threads
        command = [sys.executable, "-c", _CHILD, str(esci_raw), str(hm_raw), str(out)]
        environment = os.environ | {"POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads}
        subprocess.run(command, cwd=PARAMS.parent, env=environment, check=True)
        found.append([_digests(out / dataset) for dataset in ("esci", "hm")])
    assert found[0] == found[1]


def _plain_history(raw: Path) -> dict[str, list[tuple[str, str]]]:
    """Purchases of each customer as (day, article), known articles at their first purchase,
    sorted.
    """
    with (raw / "articles.csv").open(encoding="utf-8") as stream:
        known = {row["article_id"].zfill(10) for row in csv.DictReader(stream)}
    first: dict[tuple[str, str], str] = {}
    with (raw / "transactions_train.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            key = row["customer_id"], row["article_id"].zfill(10)
            if key[1] in known:
                first[key] = min(first.get(key, "9999"), row["t_dat"])
    purchases = defaultdict(list)
    for (customer, article), day in first.items():
        purchases[customer].append((day, article))
    return {customer: sorted(rows) for customer, rows in purchases.items()}


def _check_hm(raw: Path, data, options) -> None:
    purchases = _plain_history(raw)
    window = json.loads((data.directory / "stats.json").read_text())["used"]["holdout_days"]
    last = np.datetime64(max(day for rows in purchases.values() for day, _ in rows))
    cut = str(last - window + 1)
    sides = defaultdict(set)
    chosen = defaultdict(list)
    for request in data.requests:
        rows = purchases[request.customer_id]
        day = next(day for day, article in rows if article == request.target_id)
        earlier = [article for when, article in rows if when < day]
        assert [p.item_id for p in request.history] == earlier[-options.history :]
        assert len(earlier) >= options.min_history
        assert request.target_id not in {p.item_id for p in request.history}
        assert (day < cut) == (request.split == "train"), (
            "training sees nothing after the cut, tests nothing before"
        )
        sides[request.customer_id].add(request.split)
        chosen[request.customer_id].append((day, request.target_id))
    assert all(len(side) == 1 for side in sides.values())
    # The targets are each customer's latest eligible purchases, and no customer with one is left
    # out.
    for customer, rows in purchases.items():
        train = sides[customer] == {"train"}
        eligible = [
            (day, article)
            for day, article in rows
            if (day < cut) == train and sum(when < day for when, _ in rows) >= options.min_history
        ]
        if sides[customer]:
            assert sorted(chosen[customer]) == eligible[-options.requests_per_customer :]


def test_hm_tiny(hm_tiny, hm_raw, tiny_config):
    _check_pools(hm_tiny, tiny_config.data.pool.size)
    _check_hm(hm_raw, hm_tiny, tiny_config.data.hm)
    articles = pl.read_csv(hm_raw / "articles.csv", infer_schema=False)
    rows = {row["article_id"]: row for row in articles.iter_rows(named=True)}
    for request in hm_tiny.requests:
        for purchase in request.history:
            row = rows[purchase.item_id]
            shown = (purchase.name, purchase.type, purchase.colour)
            assert shown == (row["prod_name"], row["product_type_name"], row["colour_group_name"])
        target = rows[request.target_id]
        leaked = f"{target['prod_name']} {target['colour_group_name']} {target['graphical_appearance_name']}"
        assert target["product_type_name"].lower() in request.query
        assert not set(leaked.lower().split()) & set(request.query.split())


def test_hm_real(prepared_real):
    raw, stats, data = prepared_real("hm")
    _check_hm(raw, data, load_config(PARAMS).data.hm)
    _check_pools(data, 100)
    assert stats["read"] == {"articles": 2881, "customers": 300, "transactions": 8815}
    assert stats["dropped"]["transaction_unknown_article"] == 8815 - 2628
    assert stats["kept"]["items"] == 2881
    assert min(stats["kept"][split] for split in ("train", "validation", "test")) >= 20


def test_esci_real(prepared_real):
    raw, stats, data = prepared_real("esci")
    _check_pools(data, 100)
    assert stats["read"] == {"judgements": 3153, "products": 3150}
    assert stats["dropped"]["judgement_other_locale"] == 3153 - 2196
    judged = pl.read_parquet(raw / "shopping_queries_dataset_examples.parquet").filter(
        product_locale="us"
    )
    exact = judged.filter(esci_label="E")["query_id"].n_unique()
    assert stats["kept"]["requests"] == exact == len(data.requests)
    assert not data.catalogue["text"].str.contains(r"(?i)<(br|p|b|li|ul|div|span)\b").any()
    assert not data.catalogue["text"].str.contains("&amp;|&nbsp;|&#39;").any()
    assert not data.catalogue["description"].is_in(["None"]).any()


@pytest.mark.parametrize("locale", ["jp", "es"])
def test_esci_real_other_locales(locale, esci_real, tmp_path):
    prepare(
        "esci", esci_real, tmp_path / "out", load_config(PARAMS, [f"data.esci.locale={locale}"])
    )
    data = load_prepared(tmp_path / "out")
    assert len(data.requests) > 100
    assert data.catalogue["category"].ne("").mean() > 0.5


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("data.esci.min_exact=4", "query_too_few_exact"),
        ("data.esci.max_exact=3", "query_too_many_exact"),
        ("data.esci.max_requests=40", "query_beyond_max_requests"),
        ("data.esci.title_overlap=0.3", "query_little_title_overlap"),
        ("data.esci.labels=[E]", "judgement_label_not_chosen"),
        ("data.esci.small_version=true", "judgement_not_in_small_version"),
    ],
)
def test_esci_filters(setting, reason, esci_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    raw.mkdir()
    examples = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")
    small = (pl.col("query_id") % 2).cast(pl.Int64)
    # Query 0's titles hold none of its words.
    query = pl.when(pl.col("query_id") == 0).then(pl.lit("zzz yyy xxx")).otherwise("query")
    examples.with_columns(small_version=small, query=query).write_parquet(
        raw / "shopping_queries_dataset_examples.parquet"
    )
    name = "shopping_queries_dataset_products.parquet"
    (raw / name).write_bytes((esci_raw / name).read_bytes())
    key, value = setting.split("=")
    field = key.rsplit(".", 1)[1]
    options = load_config(PARAMS, [setting]).data.esci
    config = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"esci": options})}
    )
    stats = prepare("esci", raw, tmp_path / "out", config)
    assert stats["dropped"][reason] > 0
    assert 0 < stats["kept"]["requests"] <= 60
    requests = {request.request_id for request in load_prepared(tmp_path / "out").requests}
    exact = dict(examples.filter(esci_label="E").group_by("query_id").agg(pl.len()).rows())
    if field == "min_exact":
        assert requests == {str(query) for query, count in exact.items() if count >= 4}
    elif field == "max_exact":
        assert requests == {str(query) for query, count in exact.items() if count <= 3}
    elif field == "max_requests":
        assert len(requests) == int(value)
    elif field == "small_version":
        assert requests == {str(query) for query in exact if query % 2}
    elif field == "title_overlap":
        assert "0" not in requests
    else:
        qrels = pl.read_parquet(tmp_path / "out" / "qrels.parquet")
        assert set(qrels["label"]) == {"E"}


def test_more_relevant_items_than_places(esci_raw, tmp_path, tiny_config):
    pool = tiny_config.data.pool.model_copy(update={"size": 5})
    config = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"pool": pool})}
    )
    stats = prepare("esci", esci_raw, tmp_path / "out", config)
    data = load_prepared(tmp_path / "out")
    assert stats["dropped"]["relevant_beyond_pool"] > 0
    assert data.pools_RP.shape[1] == 5
    qrels = pl.read_parquet(tmp_path / "out" / "qrels.parquet")
    assert (data.gains_RP > 0).sum() == (qrels["gain"] > 0).sum(), (
        "what the ideal ranking counts is in the pool"
    )
    raw = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")
    exact = raw.filter(esci_label="E").group_by("query_id").agg(pl.len().clip(0, 5).alias("n"))
    kept = qrels.filter(label="E").group_by("request_id").agg(pl.len().alias("n"))
    assert sorted(kept["n"]) == sorted(exact["n"]), "the best stay"


def test_integer_and_padded_ids_are_one(hm_raw, tmp_path, tiny_config):
    forms = pl.DataFrame(
        {
            "id": [
                "108775015",
                "0108775015",
                " 0108775015 ",
                "00000108775015",
                "x1",
                "",
                None,
                "12345678901",
            ]
        }
    )
    found = forms.select(article_id(pl.col("id")).alias("id"))["id"].to_list()
    assert found == ["0108775015"] * 4 + [None] * 4
    raw = tmp_path / "raw"
    raw.mkdir()
    for file in hm_raw.iterdir():
        frame = pl.read_csv(file, infer_schema=False)
        if file.name == "transactions_train.csv":
            frame = frame.with_columns(pl.col("article_id").cast(pl.Int64))
        frame.write_csv(raw / file.name)
    prepare("hm", hm_raw, tmp_path / "one", tiny_config)
    prepare("hm", raw, tmp_path / "two", tiny_config)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_repeated_and_same_day_purchases(tmp_path, hm_raw, tiny_config):
    """A repeat counts at its first purchase; purchases of one day are not each other's history."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "articles.csv").write_bytes((hm_raw / "articles.csv").read_bytes())
    ids = pl.read_csv(raw / "articles.csv", infer_schema=False)["article_id"].to_list()
    people = [f"c{n}" for n in range(200)]
    (raw / "customers.csv").write_text("customer_id\n" + "\n".join(people) + "\n")
    lines = ["t_dat,customer_id,article_id,price,sales_channel_id"]
    for person in people:
        for day, article in (
            ("03", 0),
            ("01", 0),
            ("01", 1),
            ("03", 2),
            ("03", 3),
            ("03", 0),
            ("03", 2),
        ):
            lines.append(f"2020-01-{day},{person},{ids[article]},0.01,1")
            lines.append(f"2020-03-{day},{person},{ids[10 + article]},0.01,1")
    (raw / "transactions_train.csv").write_text("\n".join(lines) + "\n")
    stats = prepare("hm", raw, tmp_path / "out", tiny_config)
    data = load_prepared(tmp_path / "out")
    assert stats["dropped"]["transaction_repeated_article"] == 200 * 2 * 3
    for request in data.requests:
        history = [purchase.item_id for purchase in request.history]
        if request.split == "train":
            assert request.target_id == ids[3]
            assert history == [ids[0], ids[1]]
        else:
            assert request.target_id == ids[13]
            assert history == [ids[0], ids[1], ids[2], ids[3], ids[10], ids[11]]


def test_supplied_queries_in_odd_files(hm_raw, hm_tiny, tmp_path, tiny_config):
    """A byte order mark, CRLF, and a line separator of Unicode inside a query."""
    first, second = hm_tiny.requests[0], hm_tiny.requests[1]
    lines = [
        json.dumps(
            {"customer_id": r.customer_id, "article_id": r.target_id, "query": f"q {n}\u2028x"},
            ensure_ascii=False,
        )
        for n, r in enumerate((first, second))
    ]
    file = tmp_path / "queries.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    hm = tiny_config.data.hm.model_copy(update={"queries_file": str(file)})
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"hm": hm})})
    assert prepare("hm", hm_raw, tmp_path / "out", config)["used"]["queries_supplied"] == 2
    assert [r.query for r in load_prepared(tmp_path / "out").requests[:2]] == ["q 0 x", "q 1 x"]


def test_supplied_queries(hm_raw, hm_tiny, tmp_path, tiny_config):
    first = hm_tiny.requests[0]
    file = tmp_path / "queries.jsonl"
    line = {
        "customer_id": first.customer_id,
        "article_id": str(int(first.target_id)),
        "query": "a  thing\tto wear",
    }
    other = {"customer_id": "nobody", "article_id": "1", "query": "x"}
    file.write_text(json.dumps(line) + "\n\n" + json.dumps(other) + "\n")
    hm = tiny_config.data.hm.model_copy(update={"queries_file": str(file)})
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"hm": hm})})
    stats = prepare("hm", hm_raw, tmp_path / "out", config)
    data = load_prepared(tmp_path / "out")
    assert data.requests[0].query == "a thing to wear"
    assert [r.query for r in data.requests[1:]] == [r.query for r in hm_tiny.requests[1:]]
    assert stats["used"]["queries_supplied"] == 1
    assert stats["dropped"]["query_line_without_request"] == 1
