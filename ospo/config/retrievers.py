"""The ``retrievers`` section of params.yaml: which ones, and how the built-in ones are set."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ospo.config.section import Section

AnalyserLanguage = Literal[
    "auto", "none", "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek",
    "hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish",
    "tamil", "turkish",
]  # fmt: skip
ENGINES = ("opensearch", "elasticsearch")
"""What stands before the colon in the name of a search engine: ``opensearch:URL/INDEX``."""
HOLDS_CREDENTIALS = "the URL of a search engine holds a user, a query or a fragment"


def engine_address(name: str) -> str:
    """What follows ``opensearch:`` or ``elasticsearch:``; "" for other retrievers."""
    kind, colon, rest = name.partition(":")
    return rest if colon and kind in ENGINES else ""


def has_credentials(name: str) -> bool:
    """Whether an engine's URL holds more than scheme, host, port and path."""
    try:
        parts = urlsplit(engine_address(name))
    except ValueError:
        return "@" in name
    return "@" in parts.netloc or bool(parts.query or parts.fragment)


class Boosts(Section):
    """Weights of an item's fields; 0 leaves a field out."""

    title: float = Field(2.0, ge=0, le=1000, description="Weight of words in an item's title.")
    description: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Weight of words in what an item's text says beside its title.",
    )
    attributes: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Weight of words in an item's category, group, brand and colour.",
    )

    @model_validator(mode="after")
    def _some(self) -> "Boosts":
        if not self.title + self.description + self.attributes:
            raise ValueError("all fields are left out: give one a weight above 0")
        return self


class Tantivy(Section):
    """The built-in retriever ``tantivy``: BM25 over the fields of items."""

    language: AnalyserLanguage = Field(
        "auto",
        description="Language of its stemmer and stop words; auto: the data set's, none does "
        "without both.",
    )
    boosts: Boosts = Field(Boosts(), description="Weights of the fields.")


class Engine(Section):
    """Search engines named ``opensearch:URL/INDEX`` or ``elasticsearch:URL/INDEX``."""

    query: str = Field(
        "configs/engine-query.json",
        min_length=1,
        description="File that holds the body of a search as JSON, with {{text}} where the search "
        "text goes.",
    )
    batch: int = Field(32, ge=1, le=1000, description="Searches sent in one request (_msearch).")
    concurrency: int = Field(4, ge=1, le=64, description="Most requests under way at a time.")
    timeout: float = Field(10.0, gt=0, le=600, description="Seconds until a request is too late.")
    wait: float = Field(
        900.0,
        ge=0,
        description="Seconds to wait, in training and evaluation, for an engine that stays away.",
    )


class Retrievers(Section):
    """The retriever that gives the reward and those seen only in evaluation."""

    training: str = Field(
        "minilm", description="Retriever whose nDCG is the reward (docs/retrievers.md names them)."
    )
    unseen: list[str] = Field(
        ["bm25", "static"], description="Retrievers that are used only for evaluation."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format in which dense encoders compute; auto takes bfloat16 where the "
        "processor computes in it.",
    )
    flat_up_to: int = Field(
        500_000,
        ge=0,
        description="Largest catalogue, in items, that is searched exactly; larger ones are "
        "searched through an HNSW graph.",
    )
    tantivy: Tantivy = Field(Tantivy(), description="Settings of the retriever tantivy.")
    engine: Engine = Field(Engine(), description="How search engines are asked.")

    @field_validator("training", "unseen", mode="before")
    @classmethod
    def _no_secrets(cls, names: object) -> object:
        """Refused before anything can print the value."""
        for name in [names] if isinstance(names, str) else names if isinstance(names, list) else ():
            if isinstance(name, str) and engine_address(name) and has_credentials(name):
                raise ValueError(HOLDS_CREDENTIALS)
        return names

    @model_validator(mode="after")
    def _unseen(self) -> "Retrievers":
        if self.training in self.unseen:
            raise ValueError(f"unseen holds the training retriever {self.training!r}")
        if twice := [name for name in self.unseen if self.unseen.count(name) > 1]:
            raise ValueError(f"unseen names {twice[0]!r} twice")
        return self
