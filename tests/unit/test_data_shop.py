"""The built-in sample shops: deterministic, in the official formats, and worth learning from by
inference alone.
"""

import re
from collections import Counter

import numpy as np
import polars as pl
import pytest

from ospo.config import Sample, SampleEsci, SampleHm
from ospo.data import shop_esci, shop_hm
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import Request
from ospo.data.schemas import (
    ESCI_EXAMPLES_SCHEMA,
    ESCI_PRODUCTS_SCHEMA,
    HM_ARTICLES_COLUMNS,
    HM_CUSTOMERS_COLUMNS,
    HM_TRANSACTIONS_COLUMNS,
)
from ospo.retrieval import build_retriever
from ospo.reward.search import SearchReward


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_same_seed_same_bytes(dataset, request, tmp_path, tiny_config):
    raw = request.getfixturevalue(f"{dataset}_raw")
    for seed in (0, 1):
        generate_sample(dataset, tmp_path / str(seed), tiny_config.sample, seed)
    for file in raw.iterdir():
        assert file.read_bytes() == (tmp_path / "0" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "1" / file.name).read_bytes()


def test_official_columns(esci_raw, hm_raw):
    examples = pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")
    assert dict(examples.schema) == ESCI_EXAMPLES_SCHEMA
    products = pl.read_parquet(esci_raw / "shopping_queries_dataset_products.parquet")
    assert dict(products.schema) == ESCI_PRODUCTS_SCHEMA
    for name, columns in (
        ("articles", HM_ARTICLES_COLUMNS),
        ("transactions_train", HM_TRANSACTIONS_COLUMNS),
        ("customers", HM_CUSTOMERS_COLUMNS),
    ):
        assert pl.read_csv(hm_raw / f"{name}.csv", n_rows=1).columns == columns


def test_same_columns_as_the_real_files(esci_raw, hm_raw, esci_real, hm_real):
    for raw, real in ((esci_raw, esci_real), (hm_raw, hm_real)):
        for file in real.iterdir():
            read = pl.read_parquet if file.suffix == ".parquet" else pl.read_csv
            assert read(raw / file.name).columns == read(file).columns


@pytest.mark.parametrize(("queries", "products"), [(20, 200), (300, 300), (700, 200)])
def test_esci_shop_of_other_sizes(queries, products):
    examples, table = shop_esci.generate_esci_shop(queries, products, 0)
    assert len(table) == products
    assert examples["query_id"].n_unique() == queries
    assert not examples.select("query_id", "product_id").is_duplicated().any()


def test_hm_shop_of_other_sizes(tmp_path):
    sample = Sample(
        esci=SampleEsci(queries=20, products=200), hm=SampleHm(customers=20, articles=200, days=30)
    )
    generate_sample("hm", tmp_path / "hm", sample, 0)
    assert len(pl.read_csv(tmp_path / "hm" / "articles.csv")) == 200


def test_every_pair_of_kind_and_occasion_is_asked_once(esci_raw):
    queries = (
        pl.read_parquet(esci_raw / "shopping_queries_dataset_examples.parquet")["query"]
        .unique()
        .to_list()
    )
    kinds = [kind for words in shop_esci.DEPARTMENTS.values() for kind in words.split()]
    pairs = [
        (next(k for k in kinds if k in re.findall("[a-z]+", query.replace(intent, ""))), intent)
        for query in queries
        for intent in shop_esci.INTENTS
        if intent in query
    ]
    assert len(pairs) == len(queries) == len(set(pairs))


def test_occasions_imply_three_attributes_that_no_occasion_names():
    codes = shop_esci.intent_codes()
    assert ((codes >= 0).sum(axis=1) == 3).all()
    values = [word for words in shop_esci.ATTRIBUTES.values() for word in words]
    uses = Counter(word for implied in shop_esci.INTENTS.values() for word in implied.split())
    assert all(2 <= uses[word] <= 3 for word in values), "no attribute is worth guessing blindly"
    for intent in shop_esci.INTENTS:
        assert not set(re.findall("[a-z]+", intent)) & {*values, *shop_esci.COLOURS}


def test_product_texts_hold_no_words_of_occasions(esci_tiny):
    said = {word for text in esci_tiny.item_texts for word in re.findall("[a-z]+", text.lower())}
    asked = {word for intent in shop_esci.INTENTS for word in re.findall("[a-z]+", intent)}
    assert asked & said <= {"for", "a", "an", "in", "to", "of", "the", "s"}


def _implied(request: Request) -> list[str]:
    """What a reader who knows the shop would add to the query."""
    if not request.history:
        return next(
            words.split() for intent, words in shop_esci.INTENTS.items() if intent in request.query
        )
    words = Counter(word.lower() for purchase in request.history for word in purchase.name.split())
    best = [max(values, key=lambda value: words[value]) for values in shop_hm.ATTRIBUTES.values()]
    colour = Counter(purchase.colour.lower() for purchase in request.history).most_common(1)[0][0]
    return [*best, colour]


@pytest.mark.parametrize("retriever", ["minilm", "bm25"])
@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_inference_pays_and_nothing_else_does(
    dataset, retriever, request, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # vectors are written below the working directory
    data = request.getfixturevalue(f"{dataset}_tiny")
    reward = SearchReward(
        build_retriever(retriever, tiny_config, data), data, tiny_config.reward.k, 10_000
    )
    rows = list(range(len(data.requests)))
    implied = [_implied(request) for request in data.requests]

    def mean(added: list[str]) -> float:
        texts = [f"{r.query} {text}".strip() for r, text in zip(data.requests, added, strict=True)]
        return float(np.mean(reward(texts, rows)))

    raw = mean([""] * len(rows))
    oracle = mean([" ".join(words) for words in implied])
    assert oracle > raw + 0.15
    assert raw < mean([words[0] for words in implied]) < oracle, "each part of the inference pays"
    others = implied[len(rows) // 2 :] + implied[: len(rows) // 2]
    assert mean([" ".join(words) for words in others]) < raw, "another shopper's attributes do harm"
    texts = Counter(
        word for text in data.item_texts for word in set(re.findall("[a-z]+", text.lower()))
    )
    for word, _ in texts.most_common(8):
        assert mean([word] * len(rows)) < raw + 0.05, f"{word!r} helps whatever is asked"
