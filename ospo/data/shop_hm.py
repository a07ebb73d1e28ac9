"""The built-in H&M-format shop: shoppers with stable tastes that show in what they bought.

A taste is a department, a colour, a material, a pattern, a fit and an occasion. Collections of
articles are made for tastes, and a shopper buys mostly from the collection of their own. Names hold
material, pattern, fit and occasion, so the history (name, type, colour) tells the taste; a
request's query tells only type and department.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import polars as pl


def _words(text: str) -> list[str]:
    return text.split()


TYPES = {
    ("Garment Upper body", "Tops"): (
        "Blouse Shirt T-shirt Sweater Cardigan Hoodie Top Polo-shirt Vest Bodysuit Tunic Camisole "
        "Turtleneck Kimono"
    ),
    ("Garment Lower body", "Bottoms"): (
        "Trousers Skirt Shorts Leggings Jeans Culottes Joggers Chinos Skort Bermudas Cargos Capris"
    ),
    (
        "Garment Full body",
        "Dresses",
    ): "Dress Jumpsuit Dungarees Playsuit Romper Overall Sundress Gown",
    (
        "Outerwear",
        "Outdoor",
    ): "Jacket Coat Blazer Parka Poncho Anorak Trenchcoat Windbreaker Waistcoat Cape",
    (
        "Shoes",
        "Shoes",
    ): "Boots Sandals Sneakers Loafers Slippers Pumps Espadrilles Ballerinas Mules Wedges",
    (
        "Accessories",
        "Accessories",
    ): "Scarf Hat Belt Bag Gloves Cap Tie Beanie Umbrella Wallet Backpack Headband",
    ("Nightwear", "Nightwear"): "Pyjamas Robe Nightgown Nightshirt",
    ("Swimwear", "Swimwear"): "Bikini Swimsuit Trunks Sarong",
}
DEPARTMENTS = {"Ladieswear": "Womens", "Menswear": "Mens", "Divided": "Divided", "Sport": "Sport"}
COLOURS = _words("Black White Red Green Beige Yellow Pink Turquoise Grey Blue Brown Orange")
ATTRIBUTES = {
    "material": _words(
        "linen leather cotton wool velvet denim silk fleece satin corduroy cashmere mesh"
    ),
    "pattern": _words(
        "striped floral checked plain dotted leopard camouflage embroidered paisley tie-dye"
    ),
    "fit": _words("slim oversized cropped flared pleated wrap draped ribbed"),
    "occasion": _words("office holiday party training festival lounge wedding travel"),
}
_APPEARANCE = dict(
    zip(
        ATTRIBUTES["pattern"],
        (
            "Stripe",
            "Floral",
            "Check",
            "Solid",
            "Dot",
            "Leopard",
            "Camouflage",
            "Embroidery",
            "Paisley",
            "Tie-dye",
        ),
        strict=True,
    )
)
_NAMES = list(ATTRIBUTES)
_DESCRIPTIONS = (
    "{Pattern} {material} {kind}, {fit}. For {occasion}.",
    "{Fit} {kind} in {pattern} {material}, {occasion} ready.",
    "{Occasion} {kind}: {fit}, {pattern}, {material}.",
    "",
)
_PRODUCT_NAMES = (
    "{Material} {pattern} {fit} {occasion}",
    "{Occasion} {fit} {pattern} {material}",
    "{Fit} {material} {pattern} {occasion}",
)
_OWN_COLLECTION = 0.85
"""Share of purchases from the shopper's own collection."""
_FAITHFUL = 0.85
"""Share of a collection's articles that have the taste's value, for each attribute."""
_LAST_DAY = date(2020, 9, 22)


@dataclass(frozen=True)
class Wardrobe:
    """Articles as codes: kind, department, colour, collection (A,), attributes (A, 4)."""

    kind: np.ndarray
    department: np.ndarray
    colour: np.ndarray
    collection: np.ndarray
    attributes: np.ndarray


def _kinds() -> list[tuple[str, str, str]]:
    """(type, product group, garment group) of every kind of article."""
    return [
        (kind, group, garment)
        for (group, garment), words in TYPES.items()
        for kind in words.split()
    ]


def generate_hm_shop(
    customers: int, articles: int, days: int, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(articles, transactions, customers) tables with the official columns."""
    random = np.random.default_rng([seed, 2])
    wardrobe = _make_wardrobe(articles, random)
    ids = np.char.zfill((100_000_001 + 1000 * np.arange(articles)).astype(str), 10)
    people = np.array(
        [f"{int(a):016x}{int(b):016x}" * 2 for a, b in random.integers(2**63, size=(customers, 2))]
    )
    tables = _transactions(wardrobe, ids, people, days, random), _customer_table(people, random)
    return _article_table(wardrobe, ids, random), *tables


def _make_wardrobe(articles: int, random: np.random.Generator) -> Wardrobe:
    sizes = np.array([len(values) for values in ATTRIBUTES.values()])
    collections = max(4, articles // 20)
    taste_department = random.integers(len(DEPARTMENTS), size=collections)
    taste_colour = random.integers(len(COLOURS), size=collections)
    taste_attributes = random.integers(sizes, size=(collections, len(sizes)))

    # The kinds of a small shop are fewer, so that each still has several articles.
    kinds = min(len(_kinds()), max(8, articles // 40))
    collection = random.integers(collections, size=articles)
    faithful = random.random((articles, len(sizes) + 1)) < _FAITHFUL
    attributes = np.where(
        faithful[:, 1:],
        taste_attributes[collection],
        random.integers(sizes, size=(articles, len(sizes))),
    )
    colour = np.where(
        faithful[:, 0], taste_colour[collection], random.integers(len(COLOURS), size=articles)
    )
    # Kinds are spread over the list, so that a small shop has several product groups.
    kind = (np.arange(kinds) * len(_kinds()) // kinds)[
        random.permutation(np.arange(articles) % kinds)
    ]
    return Wardrobe(kind, taste_department[collection], colour, collection, attributes)


def _transactions(
    wardrobe: Wardrobe, ids: np.ndarray, people: np.ndarray, days: int, random: np.random.Generator
) -> pl.DataFrame:
    """Six to ten visits of each customer, one or two articles each; most customers come in the last
    week too.
    """
    articles = len(ids)
    rows: list[tuple[int, int, int]] = []
    tastes = random.integers(wardrobe.collection.max() + 1, size=len(people))
    for person, taste in enumerate(tastes):
        own = random.permutation(np.flatnonzero(wardrobe.collection == taste))
        visits = int(random.integers(6, 11))
        days_ago = random.choice(np.arange(7, days), size=visits, replace=False)
        if random.random() < 0.9:
            days_ago[:2] = random.choice(7, size=2, replace=False)
        taken = 0
        for day in days_ago:
            for _ in range(1 + int(random.random() < 0.3)):
                from_own = random.random() < _OWN_COLLECTION and len(own)
                article = int(own[taken % len(own)]) if from_own else int(random.integers(articles))
                taken += int(bool(from_own))
                rows.append((person, int(day), article))
    person_T, day_T, article_T = (np.array(column) for column in zip(*rows, strict=True))
    price = np.round(np.exp(random.normal(-3.6, 0.6, size=len(rows))), 6)
    return (
        pl.DataFrame(
            {
                "t_dat": [(_LAST_DAY - timedelta(days=int(day))).isoformat() for day in day_T],
                "customer_id": people[person_T],
                "article_id": ids[article_T],
                "price": price,
                "sales_channel_id": random.integers(1, 3, size=len(rows)),
            }
        )
        .sort("t_dat", maintain_order=True)
        .select("t_dat", "customer_id", "article_id", "price", "sales_channel_id")
    )


def _customer_table(people: np.ndarray, random: np.random.Generator) -> pl.DataFrame:
    news = random.random(len(people)) < 0.4
    return pl.DataFrame(
        {
            "customer_id": people,
            "FN": [1.0 if flag else None for flag in news],
            "Active": [1.0 if flag else None for flag in news],
            "club_member_status": ["ACTIVE"] * len(people),
            "fashion_news_frequency": ["Regularly" if flag else "NONE" for flag in news],
            "age": random.integers(18, 80, size=len(people)).astype(float),
            "postal_code": [
                f"{int(code):064x}" for code in random.integers(2**62, size=len(people))
            ],
        }
    ).sort("customer_id")


def _article_table(
    wardrobe: Wardrobe, ids: np.ndarray, random: np.random.Generator
) -> pl.DataFrame:
    kinds, departments = _kinds(), list(DEPARTMENTS)
    groups = list(dict.fromkeys(group for _, group, _ in kinds))
    rows = []
    codes = zip(
        ids, wardrobe.kind, wardrobe.department, wardrobe.colour, wardrobe.attributes, strict=True
    )
    for identifier, kind, department, colour, attributes in codes:
        words = {
            name: ATTRIBUTES[name][code] for name, code in zip(_NAMES, attributes, strict=True)
        }
        title, group, garment = kinds[kind]
        words |= {name.capitalize(): word.capitalize() for name, word in words.items()} | {
            "kind": title.lower()
        }
        section = f"{DEPARTMENTS[departments[department]]} {garment}"
        appearance = _APPEARANCE[words["pattern"]]
        rows.append(
            {
                "article_id": str(identifier),
                "product_code": str(identifier)[:-3].lstrip("0"),
                "prod_name": _PRODUCT_NAMES[int(random.integers(len(_PRODUCT_NAMES)))].format(
                    **words
                ),
                "product_type_no": int(kind) + 1,
                "product_type_name": title,
                "product_group_name": group,
                "graphical_appearance_no": 1010001 + ATTRIBUTES["pattern"].index(words["pattern"]),
                "graphical_appearance_name": appearance,
                "colour_group_code": int(colour) + 1,
                "colour_group_name": COLOURS[colour],
                "perceived_colour_value_id": 1,
                "perceived_colour_value_name": "Medium",
                "perceived_colour_master_id": int(colour) + 1,
                "perceived_colour_master_name": COLOURS[colour],
                "department_no": 1000 + int(kind),
                "department_name": title,
                "index_code": "ABCD"[department],
                "index_name": departments[department],
                "index_group_no": int(department) + 1,
                "index_group_name": departments[department],
                "section_no": 10 * (int(department) + 1) + groups.index(group),
                "section_name": section,
                "garment_group_no": 1001 + groups.index(group),
                "garment_group_name": garment,
                "detail_desc": _DESCRIPTIONS[int(random.integers(len(_DESCRIPTIONS)))].format(
                    **words
                ),
            }
        )
    return pl.DataFrame(rows)
