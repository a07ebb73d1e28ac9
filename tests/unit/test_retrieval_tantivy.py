"""The retriever tantivy: fields, boosts, analysis, pools and ties. The protocol is tested with all
built-in retrievers in test_retrieval.py.
"""

import math

import numpy as np
import polars as pl
import pytest

from ospo.config import Config, load_config
from ospo.config.retrievers import AnalyserLanguage, Boosts, Tantivy
from ospo.data.dataset import PreparedData
from ospo.data.schemas import CATALOGUE_SCHEMA
from ospo.errors import ConfigError
from ospo.retrieval import build_retriever
from ospo.retrieval.base import RetrieverError
from ospo.retrieval.tantivy import TantivyRetriever, item_fields
from ospo.reward.search import SearchReward


def catalogue(*items: tuple[str, str, str]) -> pl.DataFrame:
    """Items of (title, rest of the text, category)."""
    rows = [
        (f"i{n}", title, f"{title}. {rest}", category, "", "", "", "")
        for n, (title, rest, category) in enumerate(items)
    ]
    return pl.DataFrame(rows, schema=CATALOGUE_SCHEMA, orient="row")


def made(
    frame: pl.DataFrame, language: AnalyserLanguage = "english", **boosts: float
) -> TantivyRetriever:
    retriever = TantivyRetriever("tantivy", Tantivy(language=language, boosts=Boosts(**boosts)))
    retriever.index_fields(frame)
    return retriever


def scores(retriever: TantivyRetriever, text: str) -> list[float]:
    rows = np.arange(retriever.items)[None]
    return retriever.score([text], rows)[0].tolist()


def test_the_score_is_bm25_times_the_boost_of_the_field() -> None:
    frame = catalogue(("lamp", "for reading", "x"), ("desk", "oak", "x"), ("oak desk", "", "x"))
    retriever = made(frame, title=3.0, description=0.0, attributes=0.0)
    # One of three titles holds lamp once, and has 1 of 4/3 words on average; k1 = 1.2, b = 0.75.
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * 1 / (4 / 3))
    assert scores(retriever, "lamps") == pytest.approx([3 * idf * 2.2 / (1 + norm), 0, 0], rel=1e-5)
    assert scores(retriever, "reading") == [0, 0, 0]
    assert scores(retriever, "lamp lamp") == scores(retriever, "lamp")  # a text is a set of words


@pytest.mark.parametrize("field", ["title", "description", "attributes"])
def test_each_field_counts_by_its_boost(field: str) -> None:
    frame = catalogue(("tent", "a", "b"), ("a", "tent", "b"), ("a", "b", "tent"))
    place = ["title", "description", "attributes"].index(field)
    low = dict.fromkeys(["title", "description", "attributes"], 1.0)
    assert int(np.argmax(scores(made(frame, **(low | {field: 5.0})), "tent"))) == place
    assert scores(made(frame, **(low | {field: 0.0})), "tent")[place] == 0


def test_the_description_is_the_text_beside_the_title() -> None:
    fields = item_fields(catalogue(("red lamp", "red shade", "lamp")))
    assert fields["title"] == ["red lamp"]
    assert fields["description"] == [". red shade"]
    assert fields["attributes"][0].split() == ["lamp"]


@pytest.mark.parametrize(
    ("language", "stored", "asked", "found"),
    [
        ("english", "running shoes", "run", True),
        ("none", "running shoes", "run", False),
        ("german", "rote Schuhe", "Schuh", True),
        ("english", "Zelte", "Zelten", False),
        ("german", "Zelte", "Zelten", True),
        ("spanish", "zapatos", "zapato", True),
        ("german", "die Lampe", "die", False),  # a stop word
        ("english", "Die Cast Car", "die", True),
        ("turkish", "kitaplar", "kitap", True),  # a stemmer without stop words
    ],
)
def test_the_analyser_is_the_language_s(
    language: AnalyserLanguage, stored: str, asked: str, found: bool
) -> None:
    retriever = made(catalogue((stored, "", ""), ("other", "", "")), language)
    assert (scores(retriever, asked)[0] > 0) is found


@pytest.mark.parametrize(
    "text",
    ['"', "title:lamp AND -", "row:[0 TO *]", "*", "lamp^9", "(((", "\\", "\x00", "ｌａｍｐ"],
)
def test_no_text_is_a_query_language(text: str) -> None:
    retriever = made(catalogue(("lamp", "", ""), ("title", "", ""), ("desk", "", "")))
    found = scores(retriever, text)
    assert np.isfinite(found).all()
    assert found[2] == 0


def test_equal_scores_keep_catalogue_order_and_the_rest_fills_up() -> None:
    frame = catalogue(*[("desk", "", "")] * 3, *[("lamp", "", "")] * 3, ("lamp lamp", "", ""))
    rows, found = made(frame).search(["lamp", "nothing of that", ""], 5)
    assert rows.tolist() == [[6, 3, 4, 5, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert (found[0, :4] > 0).all()
    assert found[0, 4] == 0
    assert not found[1:].any()


def test_a_pool_is_ranked_as_the_whole_catalogue_is(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    """The filter takes items away and changes no score: idf is the catalogue's."""
    retriever = build_retriever("tantivy", tiny_config, esci_tiny)
    texts = [request.query for request in esci_tiny.requests][:20]
    pools_BP = esci_tiny.pools_RP[:20]
    every_BI = retriever.score(texts, np.tile(np.arange(len(esci_tiny.item_ids)), (20, 1)))
    scores_BP = retriever.score(texts, pools_BP)
    for b in range(20):
        said = pools_BP[b] >= 0
        assert (scores_BP[b, said] == every_BI[b, pools_BP[b, said]]).all()
    reward = SearchReward(retriever, esci_tiny, 10, 100)
    assert reward(texts, list(range(20))).mean() > 0.2


def test_it_learns_the_fields_of_prepared_data(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    """``build_retriever`` gives it the catalogue, not the texts alone."""
    plain = TantivyRetriever("tantivy", tiny_config.retrievers.tantivy)
    plain.index(esci_tiny.item_ids, esci_tiny.item_texts)
    text, pool = [esci_tiny.requests[0].query], esci_tiny.pools_RP[:1]
    fields = build_retriever("tantivy", tiny_config, esci_tiny)
    assert (plain.score(text, pool) != fields.score(text, pool)).any()


def test_bad_settings_are_named(tmp_path) -> None:
    from conftest import ROOT

    for setting, problem in (
        ("retrievers.tantivy.language=klingon", "retrievers.tantivy.language"),
        ("retrievers.tantivy.boosts.title=-1.0", "retrievers.tantivy.boosts.title"),
        (
            "retrievers.tantivy.boosts={title: 0.0, description: 0.0, attributes: 0.0}",
            "all fields are left out",
        ),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_config(ROOT / "params.yaml", [setting])
    with pytest.raises(RetrieverError, match="'tantivy': no item text holds a word"):
        made(catalogue(("...", "!!", "?")))
