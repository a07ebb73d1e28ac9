"""Data sets of params.yaml in the formats that search teams have: judged collections and logs."""

from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ospo.config.languages import LanguageCode
from ospo.config.section import Refused, Section

TEXT_FIELDS = ["title", "text", "brand", "colour"]


class DataSet(Section):
    """A data set of params.yaml; its ``format`` says which section it is.

    ORIGIN: the public data set that has this format, with its terms, "" where the format is
    everyone's. LICENCE: of weights trained on that one from scratch, as the hub spells it.
    """

    ORIGIN: ClassVar[str] = ""
    LICENCE: ClassVar[str] = "other"

    format: str = Field(description="The format of the raw files.")
    raw: str = Field(description="Folder of the raw files.")
    language: Literal["auto", LanguageCode] = Field(
        "auto",
        description="Language of its texts, as an ISO 639-1 code, or other (no stemmer, no stop "
        "words): it chooses stemmer, stop words, phrases, head noun and MiniLM's weights. auto: "
        "that of ESCI's locale, else English.",
    )

    @classmethod
    def tag(cls) -> str:
        """The value of ``format`` that names this section."""
        return str(get_args(cls.model_fields["format"].annotation)[0])

    @property
    def spoken(self) -> LanguageCode:
        """The language of its texts."""
        return "en" if self.language == "auto" else self.language


class JudgedData(DataSet):
    """What judged queries over documents with fields have in common."""

    text_fields: list[str] = Field(
        TEXT_FIELDS,
        min_length=1,
        description="Fields of a document that are joined into the text that retrievers index.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="Largest number of queries that are kept, chosen by seeded hash; 0 keeps all.",
    )


class BeirData(JudgedData):
    """A collection as BEIR writes them: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

    format: Literal["beir"] = Field(
        description="Judged queries as corpus.jsonl, queries.jsonl and qrels/*.tsv."
    )
    splits: Literal["kept", "drawn"] = Field(
        "kept",
        description="kept: the files of qrels/ are the splits (without dev.tsv, validation "
        "requests are drawn from train.tsv); drawn: all splits are drawn by seeded hash.",
    )


class TrecData(JudgedData):
    """A collection as TREC's tools read them: documents, topics, qrels."""

    format: Literal["trec"] = Field(description="Documents, topics and qrels as TREC has them.")
    documents: str = Field(
        "documents.jsonl", description="File of the documents: JSON lines, or .tsv with a header."
    )
    topics: str = Field("topics.tsv", description="File of the queries: id, tab, text.")
    qrels: str = Field("qrels.txt", description="File of the judgements: query 0 document grade.")


class LogData(JudgedData):
    """How clicks, carts and purchases become graded judgements."""

    documents: str = Field(
        "corpus.jsonl", description="File of the products: JSON lines, or .tsv with a header."
    )
    impressions: list[str] = Field(
        ["impression"], min_length=1, description="Actions that say a product was shown."
    )
    clicks: list[str] = Field(["click", "item_click"], description="Actions that are clicks.")
    carts: list[str] = Field(["add_to_cart"], description="Actions that put into the cart.")
    purchases: list[str] = Field(["purchase"], description="Actions that are purchases.")
    smoothing: float = Field(
        1.0,
        gt=0,
        description="Strength of the prior that a product does as well as its positions let "
        "expect, in expected clicks.",
    )
    min_impressions: int = Field(
        5,
        ge=1,
        description="Times that products must have been shown for a query before it is judged.",
    )

    @model_validator(mode="after")
    def _actions(self) -> "LogData":
        names = [*self.impressions, *self.clicks, *self.carts, *self.purchases]
        if twice := [name for name in names if names.count(name) > 1]:
            raise Refused(
                f"action {twice[0]!r} is listed twice",
                "keep it in one of impressions, clicks, carts and purchases",
            )
        return self


class UbiData(LogData):
    """A log of OpenSearch's User Behavior Insights."""

    format: Literal["ubi"] = Field(description="Queries and events of a UBI log, *.ndjson.")


class ClicksData(LogData):
    """A plain click log: query, item, position, action, time."""

    format: Literal["clicks"] = Field(description="A click log as one csv or parquet file.")
    log: str = Field("clicks.csv", description="File of the log: .csv or .parquet.")

    @field_validator("log")
    @classmethod
    def _log(cls, file: str) -> str:
        if not file.endswith((".csv", ".parquet")):
            raise Refused(
                "must end in .csv or .parquet", "name a log in one of these, or save it as one"
            )
        return file
