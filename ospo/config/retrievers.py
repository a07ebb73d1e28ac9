"""The ``retrievers`` section of params.yaml: which ones, and how the built-in ones are set."""

import difflib
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from ospo.config.section import PREFIXES, Refused, Section, lacks_name

AnalyserLanguage = Literal[
    "auto", "none", "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek",
    "hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish",
    "tamil", "turkish",
]  # fmt: skip
ENGINES = ("opensearch", "elasticsearch")
"""What stands before the colon in the name of a search engine: ``opensearch:URL/INDEX``."""
BUILT_IN = ("minilm", "static", "bm25", "tantivy", "lsa", "hybrid", "mpnet")
"""The built-in retrievers, as ``ospo.retrieval.build`` loads them: the same names, which a test
compares; this package stands below that one and is imported without it.
"""
_PREFIXED = ("hub", "path", "rerank", *ENGINES)
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
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


def _known(name: str) -> str:
    """``name``, unless no retriever can have it. Whether it loads shows when it is loaded."""
    kind, _, rest = name.partition(":")
    if kind in _PREFIXED and not rest:
        raise lacks_name(kind)
    if name in BUILT_IN or kind in _PREFIXED or _CLASS.fullmatch(name):
        return name
    close = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    written = ", ".join(PREFIXES[kind] for kind in _PREFIXED)
    raise Refused(
        "unknown retriever",
        f"{hint}use one of {', '.join(BUILT_IN)}, {written} or package.module:Class",
    )


RetrieverName = Annotated[str, AfterValidator(_known)]


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
            raise Refused("all fields are left out", "give one a weight above 0")
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

    training: RetrieverName = Field(
        "minilm", description="Retriever whose nDCG is the reward (docs/retrievers.md names them)."
    )
    unseen: list[RetrieverName] = Field(
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
            # A misspelt prefix before such a URL is no reason to show it.
            if isinstance(name, str) and (
                (engine_address(name) and has_credentials(name)) or re.search("://.*@", name)
            ):
                raise ValueError(HOLDS_CREDENTIALS)
        return names

    @model_validator(mode="after")
    def _unseen(self) -> "Retrievers":
        if self.training in self.unseen:
            raise Refused(
                f"holds the training retriever {self.training!r}",
                "take it out of unseen, or train with another one",
                "unseen",
            )
        if twice := [name for name in self.unseen if self.unseen.count(name) > 1]:
            raise Refused(f"names {twice[0]!r} twice", "name it once", "unseen")
        return self
