"""The same preparation written plainly with pandas: the baseline of benchmarks/prepare.py, and a
check of its results.

It builds the same catalogue, requests, judgements and composition of pools; splits and sampled
negatives differ, as the random numbers do. tests/test_benchmarks_prepare.py compares the two.
"""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd

from ospo.config import Config, EsciData, HmData

_HIDDEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<script\b.*?(?:</script\s*>|\Z)|<style\b.*?(?:</style\s*>|\Z)", re.I | re.S
)
_TAG = re.compile(r"""<[/!]?[a-zA-Z](?:[^<>"']|"[^"]*"|'[^']*')*>""", re.S)
_BROKEN_TAG = re.compile(r"<[/!]?[a-zA-Z][^<>]*(?:>|\Z)", re.S)
_ENTITY = re.compile(r"&(?:#[xX]?[0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_AFTER_HEAD = re.compile(
    r"(?:[,|(\[{:;/–—0-9]| - | (?:for|with|by|in|from|of|and|that|para|con|de|y) ).*\Z", re.S
)
_LAST_WORD = re.compile(r"((?:[^\W\d_]|['’-])+)(?:[\W\d_])*\Z")


ESCI_FIELDS = [
    "product_title",
    "product_brand",
    "product_color",
    "product_bullet_point",
    "product_description",
]
HM_FIELDS = [
    "prod_name",
    "product_type_name",
    "graphical_appearance_name",
    "colour_group_name",
    "detail_desc",
]


def _strip_tags(text: str) -> str:
    return _BROKEN_TAG.sub(" ", _TAG.sub(" ", _HIDDEN.sub(" ", text)))


def _clean(text: object) -> str:
    if not isinstance(text, str) or text.strip() in ("None", "nan", "NaN", "null"):
        return ""
    text = _strip_tags(text.strip())
    text = _strip_tags(_ENTITY.sub(lambda found: unescape(found[0]), text))
    return " ".join(_INVISIBLE.sub(" ", text).split())


def _head_noun(title: str) -> str:
    title = title[:160].lower()
    lead = _AFTER_HEAD.sub("", title, count=1)
    if not any(character.isalpha() for character in lead):
        lead = title
    while lead and not lead[-1].isalpha():
        lead = lead[:-1]
    found = _LAST_WORD.search(lead)
    word = found[1].strip("'’-") if found else ""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _groups(products: pd.DataFrame, judged: pd.DataFrame) -> pd.Series:
    """A category's most co-judged more frequent category, else itself."""
    heads = judged.merge(products[["product_id", "category"]], on="product_id")
    heads = heads.loc[heads.category != "", ["query_id", "category"]].drop_duplicates()
    size = heads.category.value_counts()
    pairs = heads.merge(heads, on="query_id", suffixes=("", "_other"))
    pairs = pairs[pairs.category_other.map(size) > pairs.category.map(size)]
    counts = pairs.groupby(["category", "category_other"], as_index=False).size()
    counts = counts.sort_values(
        ["category", "size", "category_other"], ascending=[True, False, True]
    )
    parent = counts.drop_duplicates("category").set_index("category").category_other
    return products.category.map(parent).fillna(products.category)


def _write(tables: dict[str, pd.DataFrame], out: Path) -> dict[str, int]:
    out.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(out / f"{name}.parquet", compression="zstd", index=False)
    return {name: len(table) for name, table in tables.items()}


def _split(keys: pd.Series, config: Config) -> np.ndarray:
    share = pd.util.hash_pandas_object(keys, index=False).to_numpy() / 2.0**64
    shares = config.data.split
    return np.where(
        share < shares.test,
        "test",
        np.where(share < shares.test + shares.validation, "validation", "train"),
    )


def _pool(
    fixed: list[str],
    category: np.ndarray,
    group: np.ndarray,
    items: np.ndarray,
    size: int,
    random: np.random.Generator,
) -> list[str]:
    held = list(fixed)
    room = size - len(held)
    for source, take in ((category, room // 2), (group, room // 2 + room * 3 // 10), (items, room)):
        missing = take - (len(held) - len(fixed))
        seen = set(held)
        drawn = (
            source[random.permutation(len(source))[: 3 * size]]
            if len(source) < 10 * size
            else (source[random.integers(len(source), size=2 * size)])
        )
        for item in drawn:
            if missing <= 0:
                break
            if item not in seen:
                held.append(item)
                seen.add(item)
                missing -= 1
    random.shuffle(held)
    return held


def _read_esci(raw: Path, config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judgements of the queries that are kept, and the products."""
    options = config.dataset("esci")
    assert isinstance(options, EsciData)
    examples = pd.read_parquet(raw / "shopping_queries_dataset_examples.parquet")
    examples = examples[
        (examples.product_locale == options.locale) & examples.esci_label.isin(options.labels)
    ].copy()
    examples["gain"] = examples.esci_label.map(options.gains)
    examples = examples.sort_values("gain", ascending=False).drop_duplicates(
        ["query_id", "product_id"]
    )
    products = pd.read_parquet(raw / "shopping_queries_dataset_products.parquet")
    products = products[products.product_locale == options.locale].sort_values("product_id")
    fields = ESCI_FIELDS
    for field in fields:
        products[field] = products[field].apply(_clean)
    products["text"] = products[fields].apply(
        lambda row: ". ".join(part for part in row if part)[:4000], axis=1
    )
    products = products[products.text != ""]
    products["category"] = products.product_title.apply(_head_noun)
    examples = examples[examples.product_id.isin(products.product_id)]
    exact = examples[examples.esci_label == "E"].groupby("query_id").size()
    kept = exact[(exact >= options.min_exact) & (exact <= options.max_exact)].index
    return examples[examples.query_id.isin(kept)], products


def prepare_esci(raw: Path, out: Path, config: Config) -> dict[str, int]:
    """ESCI with pandas; returns rows written."""
    random = np.random.default_rng(config.seed)
    examples, products = _read_esci(raw, config)
    products["group"] = _groups(products, examples)
    place_of = products.set_index("product_id")[["category", "group"]]
    members, groups = (
        products.groupby(name).product_id.apply(np.array) for name in ("category", "group")
    )
    items = products.product_id.to_numpy()
    requests, pools = [], []
    for query, rows in examples.groupby("query_id"):
        target = rows.sort_values(["gain", "product_id"], ascending=[False, True]).iloc[0]
        fixed = rows.product_id.tolist()[: config.data.pool.size]
        category, group = place_of.loc[target.product_id]
        pools.append(
            (
                str(query),
                _pool(
                    fixed, members[category], groups[group], items, config.data.pool.size, random
                ),
            )
        )
        requests.append((str(query), target["query"], target.product_id))
    table = pd.DataFrame(requests, columns=["request_id", "query", "target_id"])
    table["split"] = _split(table["query"], config)
    return _write(
        {
            "catalogue": products[["product_id", *ESCI_FIELDS, "text", "category", "group"]],
            "requests": table,
            "qrels": examples[["query_id", "product_id", "gain", "esci_label"]],
            "pools": pd.DataFrame(pools, columns=["request_id", "item_ids"]),
        },
        out,
    )


def _read_hm(raw: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Articles, customers, and each customer's first purchase of each article."""
    articles = pd.read_csv(raw / "articles.csv", dtype=str)
    articles["article_id"] = articles.article_id.str.strip().str.lstrip("0").str.zfill(10)
    fields = HM_FIELDS
    for field in fields:
        articles[field] = articles[field].apply(_clean)
    articles["text"] = articles[fields].apply(
        lambda row: ". ".join(part for part in row if part)[:4000], axis=1
    )
    articles = articles.sort_values("article_id")
    customers = pd.read_csv(raw / "customers.csv", dtype=str, usecols=["customer_id"])
    transactions = pd.read_csv(
        raw / "transactions_train.csv", dtype=str, usecols=["t_dat", "customer_id", "article_id"]
    )
    transactions["t_dat"] = pd.to_datetime(transactions.t_dat, errors="coerce")
    transactions["article_id"] = transactions.article_id.str.strip().str.lstrip("0").str.zfill(10)
    shown = articles[
        ["article_id", "prod_name", "product_type_name", "colour_group_name", "product_group_name"]
    ]
    transactions = transactions.merge(shown, on="article_id").merge(customers, on="customer_id")
    transactions = transactions.sort_values(["customer_id", "t_dat", "article_id"])
    return articles, customers, transactions.drop_duplicates(["customer_id", "article_id"])


def prepare_hm(raw: Path, out: Path, config: Config) -> dict[str, int]:
    """H&M with pandas; returns rows written."""
    random = np.random.default_rng(config.seed)
    options = config.dataset("hm")
    assert isinstance(options, HmData)
    articles, customers, transactions = _read_hm(raw)
    cut = transactions.t_dat.max() - pd.Timedelta(days=options.holdout_days)
    members = articles.groupby("product_type_name").article_id.apply(np.array)
    groups = articles.groupby("product_group_name").article_id.apply(np.array)
    items = articles.article_id.to_numpy()
    requests, pools = [], []
    people = pd.Series(customers.customer_id.sort_values().to_numpy())
    split_of = dict(zip(people, _split(people, config), strict=True))
    for customer, rows in transactions.groupby("customer_id"):
        split = split_of[customer]
        eligible = rows[(rows.t_dat > cut) if split != "train" else (rows.t_dat <= cut)]
        for row in eligible[::-1].head(options.requests_per_customer).itertuples():
            history = rows[rows.t_dat < row.t_dat]
            if len(history) < options.min_history:
                break
            name = f"{customer}-{row.article_id}"
            last = history.tail(options.history)
            columns = ("article_id", "prod_name", "product_type_name", "colour_group_name")
            shown_history = [
                dict(zip(columns, values, strict=True)) for values in last[list(columns)].to_numpy()
            ]
            requests.append(
                (
                    name,
                    split,
                    row.product_type_name.lower(),
                    customer,
                    shown_history,
                    row.article_id,
                )
            )
            same, group = members[row.product_type_name], groups[row.product_group_name]
            pools.append(
                (name, _pool([row.article_id], same, group, items, config.data.pool.size, random))
            )
    names = ["request_id", "split", "query", "customer_id", "history", "target_id"]
    table = pd.DataFrame(requests, columns=names)
    return _write(
        {
            "catalogue": articles[["article_id", *HM_FIELDS, "text"]],
            "requests": table,
            "qrels": table[["request_id", "target_id"]].assign(gain=1.0),
            "pools": pd.DataFrame(pools, columns=["request_id", "item_ids"]),
        },
        out,
    )
