"""What a data set's language changes: analysers, query keys, head nouns, phrases, encoder."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from shops import lines

from ospo.config import Config, load_config
from ospo.config.languages import LANGUAGES, MULTILINGUAL_MINILM, LanguageCode
from ospo.credit.phrases import LANGUAGES as WITH_CONNECTING_WORDS
from ospo.credit.phrases import connecting_words
from ospo.credit.segments import segment
from ospo.data.dataset import load_prepared, prepared_language
from ospo.data.head_noun import head_noun, one_form
from ospo.data.prepare import prepare
from ospo.data.query_key import query_key
from ospo.data.request import Request
from ospo.errors import ConfigError, InputError
from ospo.policy.rules import RULES
from ospo.reports.data_check import check_folder
from ospo.retrieval import build_retriever, load_retriever
from ospo.retrieval.analysers import bigram_words, stem_of, stop_words, words_of
from ospo.reward.search import SearchReward

SMALL = ["data.pool.size=20", "data.pool.hard=10", "data.pool.related=6", "data.pool.random=4"]

# Kind → (how titles say it, one and several), colours, end of the title, query; per language.
SHOPS: dict[str, dict[str, Any]] = {
    "de": {
        "kinds": {
            "lampe": ("Lampe", "Lampen"),
            "stuhl": ("Stuhl", "Stühle"),
            "teppich": ("Teppich", "Teppiche"),
            "uhr": ("Uhr", "Uhren"),
            "regenjacke": ("Regenjacke", "Regenjacken"),
        },
        "colours": ("rot", "blau", "grün", "schwarz"),
        "title": "{brand} Damen {kind} {colour} für draußen, Modell {number}",
        "query": "die {colour} {kind} für mein Zimmer",
        "stop": "für",
    },
    "es": {
        "kinds": {
            "lámpara": ("Lámpara", "Lámparas"),
            "silla": ("Silla", "Sillas"),
            "alfombra": ("Alfombra", "Alfombras"),
            "reloj": ("Reloj", "Relojes"),
            "zapato": ("Zapato", "Zapatos"),
        },
        "colours": ("rojo", "azul", "verde", "negro"),
        "title": "{brand} {kind} {colour} de mujer para el hogar, modelo {number}",
        "query": "una {kind} de color {colour} para mi casa",
        "stop": "para",
    },
}


def write_shop(folder: Path, language: str, count: int = 300) -> Path:
    """A BEIR folder of made-up products without categories, a third of them in the plural, and a
    query for each kind, colour and number.
    """
    shop = SHOPS[language]
    kinds, colours = list(shop["kinds"].values()), shop["colours"]
    items, asked, judged = [], [], []
    for n in range(count):
        form = 1 if n % 3 == 0 else 0
        kind, colour = kinds[n % len(kinds)], colours[n // len(kinds) % len(colours)]
        brand = f"Marka{n % 4}"
        title = shop["title"].format(brand=brand, kind=kind[form], colour=colour, number=n)
        items.append({"_id": f"p{n}", "title": title, "text": "", "brand": brand})
    for q in range(2 * len(kinds) * len(colours)):
        kind, colour = kinds[q % len(kinds)], colours[q // len(kinds) % len(colours)]
        words = shop["query"].format(kind=kind[q % 2], colour=colour)
        asked.append({"_id": f"q{q}", "text": f"{words} {'abcdefgh'[q % 8]}{q}"})
        fits = [i["_id"] for i in items if f" {colour} " in i["title"] and kind[0] in i["title"]]
        judged += [f"q{q}\t{name}\t1\n" for name in fits[:6]]
    lines(folder / "corpus.jsonl", items)
    lines(folder / "queries.jsonl", asked)
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels/train.tsv").write_text("".join(judged), encoding="utf-8")
    return folder


def shop_config(raw: Path, language: str) -> Config:
    section = f"data.shop={{format: beir, raw: {raw}, splits: drawn, language: {language}}}"
    return load_config(ROOT / "params.yaml", [*SMALL, section])


@pytest.mark.parametrize("language", SHOPS)
def test_a_shop_of_another_language_has_sensible_categories_pools_and_stems(
    language: str, tmp_path: Path
) -> None:
    raw = write_shop(tmp_path / "raw", language)
    config = shop_config(raw, language)
    stats = prepare("shop", None, tmp_path / "prepared/shop", config)
    assert stats["used"]["language"] == language
    data = load_prepared(tmp_path / "prepared/shop")
    assert data.language == language
    kinds = SHOPS[language]["kinds"]
    # Lamp and lamps are one category, written as most titles write it.
    assert set(data.catalogue["category"]) == set(kinds)
    assert not check_folder(raw, config).warnings
    for row in range(len(data.requests)):
        pool_P = data.pools_RP[row][data.pools_RP[row] >= 0]
        target = data.item_ids.index(data.requests[row].target_id)
        alike = data.catalogue["category"].to_numpy()[pool_P] == data.catalogue["category"][target]
        hard = alike & (data.gains_RP[row][: len(pool_P)] == 0)
        assert hard.sum() >= 5
    plural = next(iter(kinds.values()))[1]
    for name in ("bm25", "tantivy", "lsa"):
        retriever = build_retriever(name, config, data)
        ranked = data.catalogue["category"].to_numpy()[retriever.search([plural], 5)[0][0]]
        assert set(ranked) == {next(iter(kinds))}, name
    for name in ("bm25", "tantivy"):  # a stop word finds nothing, the other number of a noun does
        retriever = build_retriever(name, config, data, {})
        everything = np.arange(len(data.item_ids))[None]
        assert not retriever.score([SHOPS[language]["stop"]], everything).any()
        one, several = next(iter(kinds.values()))
        assert (retriever.score([one], everything) == retriever.score([several], everything)).all()


def test_every_code_has_its_entry_and_its_parts() -> None:
    assert tuple(LANGUAGES) == get_args(LanguageCode)
    assert set(LANGUAGES) - {"other"} == set(WITH_CONNECTING_WORDS)
    for code, language in LANGUAGES.items():
        assert bool(stop_words(code)) == bool(language.snowball)
        stem_of(code)("shoes")
        assert connecting_words(code) or code == "other"
    assert words_of("other")("Ein Wort") == ["ein", "wort"]
    with pytest.raises(ValueError, match="unknown code 'xx'"):
        words_of("xx")


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "rote Lampen", "rote Lampe"),
        ("fr", "chaussures rouges", "chaussure rouge"),
        ("ja", "ドレス 赤", "ドレス赤"),
    ],
)
def test_queries_of_one_stem_are_one(language: str, one: str, other: str) -> None:
    assert query_key(one, language) == query_key(other, language)
    assert query_key(one, "other") != query_key(other, "other") or language == "ja"


@pytest.mark.parametrize(
    ("language", "title", "brand", "noun"),
    [
        ("de", "Acme Wasserdichte Regenjacke für Damen, blau", "Acme", "regenjacke"),
        ("de", "Laufschuhe Herren leicht", "", "laufschuhe"),
        ("es", "Nike Zapatillas de running para hombre", "Nike", "zapatillas"),
        ("es", "Pack 3 Camisetas blancas", "", "camisetas"),
        ("fr", "Chaussures imperméables pour femme", "", "chaussures"),
        ("it", "Scarpe da ginnastica", "", "scarpe"),
        ("nl", "Waterdichte jas voor dames", "", "jas"),
        ("ja", "[ナイキ] エアマックス スニーカー メンズ", "ナイキ", "スニーカー"),
        ("ja", "【公式】防水スニーカー（黒）", "", "スニーカー"),
        ("zh", "防水运动鞋，黑色", "", "防水运动鞋"),
        ("other", "Acme Torba for men", "", "torba"),
        ("es", "¿?", "", ""),
    ],
)
def test_head_nouns(language: str, title: str, brand: str, noun: str) -> None:
    frame = pl.DataFrame({"title": [title], "brand": [brand]})
    found = frame.select(head_noun(pl.col("title"), language, pl.col("brand")))
    assert found["title"].to_list() == [noun]


def test_one_form_is_the_most_frequent_one() -> None:
    words = pl.Series("category", ["zapatos", "zapato", "zapatos", "bolso", ""])
    assert one_form(words, "es").to_list() == ["zapatos", "zapatos", "zapatos", "bolso", ""]
    assert one_form(words, "en").to_list() == words.to_list()
    tie = pl.Series("category", ["zapatos", "zapato"])
    assert one_form(tie, "es").to_list() == ["zapato", "zapato"]


def test_bigrams_of_what_has_no_spaces() -> None:
    assert bigram_words("防水スニーカー Nike2") == [
        "防水",
        "水ス",
        "スニ",
        "ニー",
        "ーカ",
        "カー",
        "nike2",
    ]
    assert bigram_words("ＡＢＣ靴") == ["abc", "靴"]
    assert bigram_words("ｽﾆｰ") == ["スニ", "ニー"]
    assert bigram_words("등산화") == ["등산", "산화"]
    assert bigram_words("") == []


@pytest.mark.parametrize(
    ("language", "text", "units"),
    [
        ("es", "zapatos rojos para lluvia", ["zapatos rojos", " para lluvia"]),
        ("es", "talla 42, de cuero", ["talla 42,", " de cuero"]),
        ("de", "wasserdichte Jacke mit Kapuze", ["wasserdichte Jacke", " mit Kapuze"]),
        ("de", "rote leichte warme weiche Jacke", ["rote leichte", " warme weiche Jacke"]),
        ("ja", "防水スニーカーの黒", ["防水", "スニーカーの", "黒"]),
        ("other", "punane kott meestele vihma jaoks", ["punane kott", " meestele vihma jaoks"]),
        ("es", "de la", ["de la"]),
        ("es", "para", ["para"]),
    ],
)
def test_phrases_of_other_languages(language: str, text: str, units: list[str]) -> None:
    assert segment(text, language=language).units == units


def test_a_text_is_cut_by_the_language_that_is_asked_for() -> None:
    text = "red dress with pockets for die Hand"
    assert segment(text).units != segment(text, language="de").units
    assert segment(text).units == segment(text, language="en").units


def test_the_feedback_rule_skips_stop_words_of_the_language() -> None:
    titles = ["Lampe mit Schirm", "Lampe mit Schirm", "mit Fuß"]
    feedback = RULES["feedback"]
    assert feedback.text(Request(query="Lampe"), titles) == "Lampe mit"
    assert feedback.text(Request(query="Lampe"), titles, stop_words("de")) == "Lampe schirm"


def test_minilm_of_another_language_is_the_multilingual_one(monkeypatch) -> None:
    asked = []

    def no_hub(name: str, source: object, config: Config) -> None:
        asked.append(source)
        raise InputError(str(source), "", "fails to load: not in the cache", "…")

    monkeypatch.setattr("ospo.retrieval.build._sentence", no_hub)
    config = load_config(ROOT / "params.yaml")
    with pytest.raises(InputError, match=r"retrievers: minilm.*German.*multilingual.*Fix.*bm25"):
        load_retriever("minilm", config, language="de")
    assert asked == [MULTILINGUAL_MINILM]
    load_retriever("minilm", config)
    assert len(asked) == 1


def test_tantivy_named_for_a_language_keeps_it(tmp_path: Path) -> None:
    raw = write_shop(tmp_path / "raw", "de")
    config = shop_config(raw, "de")
    prepare("shop", None, tmp_path / "prepared/shop", config)
    data = load_prepared(tmp_path / "prepared/shop")
    spanish = config.retrievers.model_copy(
        update={"tantivy": config.retrievers.tantivy.model_copy(update={"language": "none"})}
    )
    plain = build_retriever("tantivy", config.model_copy(update={"retrievers": spanish}), data)
    everything = np.arange(len(data.item_ids))[None]
    assert (plain.score(["Lampe"], everything) != plain.score(["Lampen"], everything)).any()


def test_an_unknown_language_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.shop\.language: Input should be .*'klingon'"):
        shop_config(tmp_path, "klingon")


def test_stats_of_an_unknown_language_are_refused(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text(json.dumps({"used": {"locale": "jp"}}))
    assert prepared_language(tmp_path) == "ja"  # written before languages were
    (tmp_path / "stats.json").write_text(json.dumps({"used": {"language": "klingon"}}))
    with pytest.raises(InputError, match=r"stats\.json.*used\.language.*'klingon'"):
        prepared_language(tmp_path)


@pytest.mark.parametrize(("locale", "language"), [("es", "es"), ("jp", "ja")])
def test_real_rows_of_other_locales(
    locale: str, language: str, esci_real: Path, tmp_path: Path
) -> None:
    config = load_config(ROOT / "params.yaml", [*SMALL, f"data.esci.locale={locale}"])
    stats = prepare("esci", esci_real, tmp_path / "prepared/esci", config)
    assert stats["used"]["language"] == language
    data = load_prepared(tmp_path / "prepared/esci")
    named = data.catalogue.filter(pl.col("category") != "")
    assert len(named) > 0.95 * len(data.catalogue)
    raw: dict[str, float] = {}
    rows = np.arange(len(data.requests))
    for name in ("bm25", "tantivy"):
        reward = SearchReward(build_retriever(name, config, data), data, 10, 0)
        raw[name] = float(np.mean(reward([data.requests[r].query for r in rows], rows.tolist())))
    # Measured: .91 and .89 (Spanish), .85 (Japanese); read as English .88 and .54.
    assert min(raw.values()) > 0.8, raw
    for text in data.requests.frame["query"].head(50):
        seg = segment(text, language=language)
        assert "".join(seg.units) == text
