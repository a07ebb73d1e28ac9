"""The built-in ESCI-format shop: queries name a thing, an occasion and sometimes a colour, products
tell attributes.

Each occasion implies three attributes, the same for every query and every kind of product. Product
texts hold the attribute words and never the occasion's, so a rewrite that names what the occasion
implies finds more, and no fixed text appended to every query does. Labels: E has the kind, all
three attributes and the colour, where one is named; S the kind and some of these; C is another kind
of the same department with at least two; I another department's.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl


def _words(text: str) -> list[str]:
    return text.split()


DEPARTMENTS = {
    "clothing": "shirt jacket hoodie vest scarf trousers skirt cardigan robe",
    "shoes": "sneakers boots sandals slippers loafers clogs moccasins insoles gaiters",
    "bags": "backpack tote suitcase briefcase wallet purse satchel pouch duffel",
    "kitchen": "apron kettle mug teapot tray coaster placemat jug lunchbox",
    "furniture": "chair stool bench table shelf ottoman cabinet desk footrest",
    "bedding": "pillow blanket quilt bedspread mattress cushion duvet hammock bolster",
    "office": "notebook organizer folder clipboard bookend planner wastebasket calendar letterbox",
    "lighting": "lamp lantern chandelier torch nightlight sconce candlestick spotlight lampshade",
    "outdoor": "tent umbrella cooler parasol windbreak daybed firepit birdhouse planter",
    "accessories": "belt gloves hat headband watch bracelet sunglasses keyring necklace",
    "electronics": "headphones speaker keyboard charger radio tripod turntable microphone "
    "projector",
    "play": "puzzle dollhouse kite scooter rattle playmat sandbox teepee trampoline",
}
COLOURS = _words("navy white red green yellow grey")
ATTRIBUTES = {
    "material": _words(
        "linen leather cotton wool bamboo steel canvas velvet cork denim silk fleece"
    ),
    "pattern": _words(
        "striped floral checked plain dotted geometric camouflage embroidered marbled paisley"
    ),
    "style": _words(
        "minimalist vintage rustic sporty elegant bohemian industrial nautical playful classic"
    ),
    "feature": _words(
        "waterproof foldable lightweight padded insulated reflective washable adjustable magnetic "
        "rechargeable "
        "stackable breathable"
    ),
}
# Occasion → what it implies: three attributes of different kinds; every attribute serves two or
# three occasions.
INTENTS = {
    "for a beach holiday": "linen bohemian lightweight",
    "for a home office": "cork minimalist adjustable",
    "gift for a climber": "fleece sporty lightweight",
    "for a wedding guest": "silk floral elegant",
    "for night runs": "geometric sporty reflective",
    "for a sailing trip": "striped nautical waterproof",
    "for grandmother's birthday": "velvet floral classic",
    "for a mountain hut": "checked rustic insulated",
    "for a student dorm": "denim playful stackable",
    "for a baby's nursery": "cotton dotted washable",
    "for a yoga retreat": "bamboo bohemian breathable",
    "for a motorbike rider": "leather industrial padded",
    "for a garage workshop": "steel industrial magnetic",
    "for a music festival": "denim paisley foldable",
    "for a snowy commute": "wool plain insulated",
    "for a picnic": "cotton checked foldable",
    "for a job interview": "wool plain classic",
    "for the hunting season": "fleece camouflage waterproof",
    "for a cocktail party": "velvet marbled elegant",
    "for a frequent flyer": "plain minimalist adjustable",
    "for a garden party": "linen embroidered washable",
    "for an art student": "canvas marbled magnetic",
    "for a gamer": "geometric industrial rechargeable",
    "for a retro diner": "dotted vintage stackable",
    "for a zen bedroom": "bamboo minimalist breathable",
    "for cycling to work": "camouflage sporty reflective",
    "for a camping weekend": "canvas rustic rechargeable",
    "for a toddler's playroom": "dotted playful padded",
    "gift for an executive": "leather classic magnetic",
    "for a spring brunch": "cork paisley elegant",
    "for a log cabin": "wool embroidered rustic",
    "for a harbour cottage": "striped nautical stackable",
    "for an antiques lover": "silk paisley vintage",
    "for a school trip": "camouflage playful reflective",
    "for a concert tour": "steel vintage rechargeable",
    "for a desert trek": "linen geometric breathable",
    "for a ferry crossing": "canvas nautical padded",
    "for a tea ceremony": "silk embroidered washable",
    "for a rainy festival of lights": "cork marbled waterproof",
    "for a long train ride": "striped bohemian adjustable",
}
_BRANDS = _words(
    "Nordvik Alder Quillon Maretta Tessaly Brightoak Hollin Ravelo Ostara Kestrel Pinewell Dunmore"
)
_TITLES = (
    "{brand} {colour} {material} {kind}",
    "{colour} {material} {kind}",
    "{brand} {material} {kind}, {colour}",
)
# No filler words: a word that many texts share is a word that a policy could append to every query.
_BULLETS = ("{pattern} {style}", "{style} {kind}, {pattern}", "{pattern}, {style}")
_FEATURES = ("{feature}", "{feature} {kind}", "{feature} {material}")
_DESCRIPTIONS = (
    "<p>A {feature} {kind} in {pattern} {material}.</p>",
    "<b>{style}</b> {kind}: {material}, {pattern} &amp; {feature}.",
    "{style} {pattern} {kind}<br>{feature} {material}",
    "",
)
_QUERIES = ("{colour} {kind} {intent}", "{intent} {colour} {kind}", "{kind} {colour} {intent}")
_COLOUR_NAMED = 0.5
"""Share of queries that name a colour."""
_NAMES = list(ATTRIBUTES)


@dataclass(frozen=True)
class Goods:
    """Products as codes: kind (P,), department (P,), colour (P,), attributes (P, 4) in the order of
    ATTRIBUTES.
    """

    kind: np.ndarray
    department: np.ndarray
    colour: np.ndarray
    attributes: np.ndarray


def intent_codes() -> np.ndarray:
    """(intents, 4) implied attribute codes, -1 where an occasion says nothing about a kind of
    attribute.
    """
    codes = np.full((len(INTENTS), len(_NAMES)), -1)
    for row, implied in enumerate(INTENTS.values()):
        for word in implied.split():
            column = next(i for i, name in enumerate(_NAMES) if word in ATTRIBUTES[name])
            codes[row, column] = ATTRIBUTES[_NAMES[column]].index(word)
    return codes


def _kinds(products: int) -> list[tuple[int, str]]:
    """(department, kind) of the kinds that the shop sells: fewer in a small shop, so that each has
    enough products.
    """
    rows = [(number, words.split()) for number, words in enumerate(DEPARTMENTS.values())]
    per_department = min(9, max(1, round(products / 56 / len(rows))))
    departments = len(rows) if per_department > 1 else min(len(rows), max(3, products // 56))
    return [
        (number, kind) for number, kinds in rows[:departments] for kind in kinds[:per_department]
    ]


def generate_esci_shop(queries: int, products: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(examples, products) tables in the official schemas. A query names a (kind, occasion) pair
    once.

    Only where ``queries`` exceeds the number of pairs do pairs come again, with another colour or
    wording.
    """
    random = np.random.default_rng([seed, 1])
    kinds = _kinds(products)
    implied = intent_codes()
    pairs = random.permutation(len(kinds) * len(INTENTS))
    pairs = np.resize(pairs, queries)
    wanted_kind, wanted_intent = pairs // len(INTENTS), pairs % len(INTENTS)
    named = random.random(queries) < _COLOUR_NAMED
    wanted_colour = np.where(named, random.integers(len(COLOURS), size=queries), -1)
    goods = _make_goods(kinds, wanted_kind, wanted_colour, implied[wanted_intent], products, random)
    examples = _judge(goods, kinds, wanted_kind, wanted_colour, wanted_intent, implied, random)
    return examples, _product_table(goods, kinds, random)


def _make_goods(
    kinds: list[tuple[int, str]],
    wanted_kind: np.ndarray,
    wanted_colour: np.ndarray,
    wanted_attributes: np.ndarray,
    products: int,
    random: np.random.Generator,
) -> Goods:
    """About half of the products answer a query exactly, a quarter miss one of its wishes, the rest
    are random.
    """
    sizes = np.array([len(values) for values in ATTRIBUTES.values()])
    department = np.array([number for number, _ in kinds])
    exact = min(4, max(1, products // (2 * len(wanted_kind))))
    source = np.repeat(np.arange(len(wanted_kind)), exact)[:products]
    near = random.integers(len(wanted_kind), size=min(products // 4, products - len(source)))
    answered = np.concatenate([source, near])
    kind = np.concatenate(
        [wanted_kind[answered], random.integers(len(kinds), size=products - len(answered))]
    )
    colour = random.integers(len(COLOURS), size=products)
    attributes = random.integers(sizes, size=(products, len(sizes)))
    asked = wanted_colour[answered]
    colour[: len(answered)] = np.where(asked >= 0, asked, colour[: len(answered)])
    wishes = wanted_attributes[answered]
    attributes[: len(answered)] = np.where(wishes >= 0, wishes, attributes[: len(answered)])
    # Near misses: one of colour and attributes drawn anew.
    for row in range(len(source), len(answered)):
        column = int(random.integers(len(sizes) + 1))
        if column == len(sizes):
            colour[row] = random.integers(len(COLOURS))
        else:
            attributes[row, column] = random.integers(sizes[column])
    order = random.permutation(products)
    return Goods(kind[order], department[kind[order]], colour[order], attributes[order])


def _judge(
    goods: Goods,
    kinds: list[tuple[int, str]],
    wanted_kind: np.ndarray,
    wanted_colour: np.ndarray,
    wanted_intent: np.ndarray,
    implied: np.ndarray,
    random: np.random.Generator,
) -> pl.DataFrame:
    """Judgements as annotators would give them: all E, the 10 best S, 4 C and 4 I for each
    query.
    """
    judgements: list[tuple[int, str, int, str]] = []
    intents = list(INTENTS)
    for number, (kind, colour, intent) in enumerate(
        zip(wanted_kind, wanted_colour, wanted_intent, strict=True)
    ):
        wishes = implied[intent]
        overlap = ((goods.attributes == wishes) & (wishes >= 0)).sum(axis=1) + (
            goods.colour == colour
        )
        same = goods.kind == kind
        related = (goods.department == kinds[kind][0]) & ~same
        tie = random.random(len(overlap))
        template = _QUERIES[int(random.integers(len(_QUERIES)))]
        query = template.format(
            colour=COLOURS[colour] if colour >= 0 else "",
            kind=kinds[kind][1],
            intent=intents[intent],
        )
        full = 3 + int(colour >= 0)
        groups = {
            "E": (same & (overlap == full), len(overlap)),
            "S": (same & (overlap < full) & (overlap > 0), 10),
            "C": (related & (overlap >= 2), 4),
            "I": (goods.department != kinds[kind][0], 4),
        }
        for label, (members, most) in groups.items():
            rows = np.flatnonzero(members)
            keys = tie[rows] if label == "I" else tie[rows] - overlap[rows]
            rows = rows[np.argsort(keys, kind="stable")[:most]]
            judgements += [(number, " ".join(query.split()), int(row), label) for row in rows]
    return pl.DataFrame(
        judgements, schema=["query_id", "query", "product", "esci_label"], orient="row"
    ).select(
        example_id=pl.int_range(pl.len(), dtype=pl.Int64),
        query="query",
        query_id=pl.col("query_id").cast(pl.Int64),
        product_id=_product_ids(pl.col("product")),
        product_locale=pl.lit("us"),
        esci_label="esci_label",
        small_version=pl.lit(1, dtype=pl.Int64),
        large_version=pl.lit(1, dtype=pl.Int64),
        split=pl.lit("train"),
    )


def _product_ids(row: pl.Expr) -> pl.Expr:
    return pl.format("B{}", row.cast(pl.String).str.zfill(9))


def _product_table(
    goods: Goods, kinds: list[tuple[int, str]], random: np.random.Generator
) -> pl.DataFrame:
    columns: dict[str, list[str | None]] = {
        name: [] for name in ("title", "description", "bullets", "brand", "colour")
    }
    for kind, colour, codes in zip(goods.kind, goods.colour, goods.attributes, strict=True):
        words = {name: ATTRIBUTES[name][code] for name, code in zip(_NAMES, codes, strict=True)}
        words |= {"kind": kinds[kind][1], "colour": COLOURS[colour]}
        words["brand"] = _BRANDS[int(random.integers(len(_BRANDS)))]
        title, bullet, feature, description = (
            options[int(random.integers(len(options)))]
            for options in (_TITLES, _BULLETS, _FEATURES, _DESCRIPTIONS)
        )
        columns["title"].append(title.format(**words))
        columns["bullets"].append(f"{bullet}\n{feature}".format(**words))
        columns["description"].append(description.format(**words) or None)
        columns["brand"].append(words["brand"])
        columns["colour"].append(words["colour"])
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)).select(
        product_id=_product_ids(pl.int_range(pl.len())),
        product_title="title",
        product_description="description",
        product_bullet_point="bullets",
        product_brand="brand",
        product_color="colour",
        product_locale=pl.lit("us"),
    )
