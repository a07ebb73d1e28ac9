"""The sections ``data`` and ``sample`` of params.yaml: data sets, splits, pools, sample shops."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ospo.config.formats import BeirData, ClicksData, DataSet, TrecData, UbiData
from ospo.config.languages import OF_LOCALE, LanguageCode
from ospo.config.section import Refused, Section

NO_QUERIES = "ospo/data/no_queries.jsonl"
"""The empty file that ``data.hm.queries_file`` names by default: DVC needs a file to depend on."""


class EsciData(DataSet):
    """How ESCI's raw files become requests."""

    ORIGIN: ClassVar[str] = "Amazon Shopping Queries (ESCI), Apache-2.0, arXiv 2206.06588"
    LICENCE: ClassVar[str] = "apache-2.0"

    format: Literal["esci"] = Field(description="Judged queries in ESCI's official parquet files.")
    locale: Literal["us", "jp", "es"] = Field(
        "us", description="Locale of the products and judgements that are kept."
    )
    labels: list[Literal["E", "S", "C", "I"]] = Field(
        ["E", "S", "C", "I"],
        min_length=1,
        description="Labels of the judgements that are kept; judgements of the other labels only "
        "name hard negatives.",
    )
    gains: dict[Literal["E", "S", "C", "I"], float] = Field(
        {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0},
        description="Gain of each label in nDCG, from 0 to 1; a product is relevant where its gain "
        "is above 0.",
    )
    small_version: bool = Field(
        False,
        description="Keep only judgements of the small version of the ranking task, as the paper "
        "does.",
    )
    min_exact: int = Field(
        1, ge=1, description="Least number of Exact products that a query must have to be kept."
    )
    max_exact: int = Field(
        50, ge=1, description="Largest number of Exact products that a query may have to be kept."
    )
    title_overlap: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a query's words (but at least two words) that one of its Exact "
        "titles must hold; 0 switches the filter off.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="Largest number of queries that are kept, chosen by seeded hash; 0 keeps all.",
    )

    @property
    def spoken(self) -> LanguageCode:
        """The language of its texts: that of the locale, unless ``language`` says another."""
        return OF_LOCALE[self.locale] if self.language == "auto" else self.language

    @field_validator("gains")
    @classmethod
    def _gains(cls, gains: dict[str, float]) -> dict[str, float]:
        if missing := [label for label in "ESCI" if label not in gains]:
            raise Refused(f"no gain for label {', '.join(missing)}", "give each of E, S, C, I one")
        if any(not 0 <= gain <= 1 for gain in gains.values()):
            raise Refused("gains must lie in [0, 1]", "write numbers from 0 to 1")
        return gains

    @model_validator(mode="after")
    def _exact(self) -> "EsciData":
        if self.min_exact > self.max_exact:
            raise Refused(
                f"is {self.min_exact}, above max_exact, {self.max_exact}: no query has so many and "
                "so few Exact products",
                "lower it, or raise max_exact",
                "min_exact",
            )
        return self


class HmData(DataSet):
    """How H&M's raw files become requests."""

    ORIGIN: ClassVar[str] = (
        "H&M Personalized Fashion Recommendations, the competition's rules: research use, no "
        "redistribution of the data"
    )

    format: Literal["hm"] = Field(description="Purchases in H&M's official CSV files.")
    history: int = Field(
        6, ge=1, description="Largest number of earlier purchases shown with a request, the latest."
    )
    min_history: int = Field(
        1,
        ge=0,
        description="Least number of purchases on earlier days that a purchase needs to become a "
        "request.",
    )
    requests_per_customer: int = Field(
        2, ge=1, description="Largest number of requests per customer, from the latest purchases."
    )
    holdout_days: int = Field(
        7,
        ge=1,
        description="Length, in days, of the last period: validation and test requests lie in it, "
        "training requests before it.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="Largest number of requests that are kept, chosen by seeded hash; 0 keeps all.",
    )
    queries_file: str = Field(
        NO_QUERIES,
        description="File of supplied queries, one JSON object per line with customer_id, "
        "article_id and query; the default is an empty file: templates write all queries.",
    )

    @field_validator("queries_file")
    @classmethod
    def _queries_file(cls, file: str) -> str:
        if not file:  # DVC depends on the file, and cannot on none
            raise Refused("must name a file", f"name {NO_QUERIES}, which is empty, for none")
        return file


class Split(Section):
    """Shares of queries (ESCI) or customers (H&M) held out."""

    validation: float = Field(
        0.15, gt=0, lt=1, description="Share of queries (ESCI) or customers (H&M) for validation."
    )
    test: float = Field(
        0.25, gt=0, lt=1, description="Share of queries (ESCI) or customers (H&M) for the test."
    )

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        if self.validation + self.test >= 1:
            raise Refused(
                f"validation + test must be below 1, got {self.validation:g} + {self.test:g}",
                "lower one of the two",
            )
        return self


class Pool(Section):
    """Sizes of a candidate pool: relevant items first, then negatives in these shares, up to
    ``size``.
    """

    size: int = Field(100, ge=2, description="Items per candidate pool, relevant ones included.")
    hard: int = Field(
        50, ge=0, description="Parts of the negatives that come from the target's own category."
    )
    related: int = Field(
        30, ge=0, description="Parts of the negatives that come from the rest of its group."
    )
    random: int = Field(
        20, ge=0, description="Parts of the negatives that come from the rest of the catalogue."
    )


FORMATS: dict[str, type[DataSet]] = {
    kind.tag(): kind for kind in (EsciData, HmData, BeirData, TrecData, UbiData, ClicksData)
}
"""Format → the section of a data set in it."""
AnyData = Annotated[
    EsciData | HmData | BeirData | TrecData | UbiData | ClicksData, Field(discriminator="format")
]
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
"""A data set's name: it becomes a folder, a stage of dvc.yaml and part of a registered model's."""


class Data(Section):
    """Data preparation. Every key other than ``split`` and ``pool`` names a data set."""

    model_config = ConfigDict(extra="allow")

    split: Split = Field(Split(), description="Shares held out for validation and the test.")
    pool: Pool = Field(Pool(), description="Size and composition of the candidate pools.")
    __pydantic_extra__: dict[str, AnyData]

    @model_validator(mode="after")
    def _names(self) -> "Data":
        if not self.sets:
            raise Refused("names no data set", "add one: ospo data add")
        if bad := [name for name in self.sets if not NAME.fullmatch(name)]:
            raise Refused(
                f"{bad[0]!r} cannot name a data set", "use a to z, 0 to 9, - and _, at most 40"
            )
        return self

    @property
    def sets(self) -> dict[str, DataSet]:
        """Name → section of every data set, in the order of params.yaml."""
        return dict(self.__pydantic_extra__)


class SampleEsci(Section):
    """Size of the built-in ESCI-format shop."""

    queries: int = Field(1000, ge=20, description="Number of queries that are generated.")
    products: int = Field(4000, ge=200, description="Number of products that are generated.")


class SampleHm(Section):
    """Size of the built-in H&M-format shop."""

    customers: int = Field(900, ge=20, description="Number of customers that are generated.")
    articles: int = Field(3000, ge=200, description="Number of articles that are generated.")
    days: int = Field(120, ge=30, description="Time that the purchases cover, in days.")


class Sample(Section):
    """The built-in sample shops."""

    esci: SampleEsci = Field(SampleEsci(), description="Size of the shop in ESCI's format.")
    hm: SampleHm = Field(SampleHm(), description="Size of the shop in H&M's format.")
