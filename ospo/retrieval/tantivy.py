"""BM25 over the fields of items by tantivy, a search engine of Lucene's kind within this process.

An item's score is the sum, over the distinct words of a text and the fields, of BM25 (k1 = 1.2, b =
0.75, lengths in 8 bits, as Lucene has them) times the field's boost. What tantivy ranks is a query
of words, never text in its query language: no character of a text is an operator.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ospo.config.languages import LANGUAGES
from ospo.config.retrievers import Tantivy
from ospo.retrieval.analysers import bigram_words
from ospo.retrieval.base import ReadsFields, RetrieverError, check_rows, filled_up, pool_runs

ANALYSER = "ospo"
LONGEST_WORD = 200  # bytes; longer ones are in no catalogue's text
# Languages whose stop words tantivy knows; it stems some more.
STOP_WORDS = frozenset(
    "danish dutch english finnish french german hungarian italian norwegian portuguese russian "
    "spanish swedish".split()
)
_HEAP = 50_000_000
MARGIN = 1000


def item_fields(catalogue: pl.DataFrame) -> dict[str, list[str]]:
    """Title, description and attributes of each item of a prepared catalogue.

    The description is what an item's text says beside its title: ESCI's bullet points stand in no
    other column.
    """
    text, title = pl.col("text"), pl.col("title")
    attributes = [pl.col(name) for name in ("category", "group", "brand", "colour")]
    frame = catalogue.select(
        "title",
        description=pl.when(text.str.starts_with(title))
        .then(text.str.strip_prefix(title))
        .otherwise(text),
        attributes=pl.concat_str(attributes, separator=" "),
    )
    return {name: frame[name].to_list() for name in frame.columns}


class TantivyRetriever(ReadsFields):
    """Ranks the catalogue, or a pool by a filtered query.

    Scores are the same in each call, whatever a text's batch. Items that hold none of a text's
    words score 0. Where ``settings.language`` is auto, stemmer and stop words are those of
    ``language``; texts without spaces between words are read as pairs of characters.
    """

    linear = False

    def __init__(self, name: str, settings: Tantivy, language: str = "en") -> None:
        import tantivy

        self.name, self.settings = name, settings
        spoken = LANGUAGES[language]
        automatic = settings.language == "auto"
        self._language = (spoken.snowball or "none") if automatic else settings.language
        self._bigrams = automatic and spoken.bigrams
        self.items = 0
        self._tantivy: Any = tantivy
        self._analyser = self._make_analyser()

    def _make_analyser(self) -> Any:
        made = self._tantivy
        tokens = made.Tokenizer.whitespace() if self._bigrams else made.Tokenizer.simple()
        analyser = (
            made.TextAnalyzerBuilder(tokens)
            .filter(made.Filter.remove_long(LONGEST_WORD))
            .filter(made.Filter.lowercase())
        )
        language = self._language
        if language in STOP_WORDS:
            analyser = analyser.filter(made.Filter.stopword(language))
        if language != "none":
            analyser = analyser.filter(made.Filter.stemmer(language))
        return analyser.build()

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in texts without fields: all of a text is description. ``cache`` is not used."""
        self._take_in({"description": list(item_texts)}, {"description": 1.0}, len(item_ids))

    def index_fields(self, catalogue: pl.DataFrame) -> None:
        """Take in a prepared catalogue by its fields, those with a boost of 0 left out."""
        boosts = self.settings.boosts.model_dump()
        self._take_in(item_fields(catalogue), boosts, len(catalogue))

    def _take_in(self, fields: dict[str, list[str]], boosts: dict[str, float], items: int) -> None:
        made = self._tantivy
        self._boosts = {name: boosts[name] for name in fields if boosts[name]}
        schema = made.SchemaBuilder()
        for name in self._boosts:
            schema.add_text_field(name, tokenizer_name=ANALYSER, index_option="freq")
        schema.add_unsigned_field("row", indexed=True, fast=True)
        self._schema = schema.build()
        index = made.Index(self._schema)
        index.register_tokenizer(ANALYSER, self._analyser)
        writer = index.writer(_HEAP, 1)
        for row in range(items):
            document = made.Document()
            for name in self._boosts:
                document.add_text(name, self._read(fields[name][row]))
            document.add_unsigned("row", row)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()
        self.items = items
        if not any(self._terms(text) for name in self._boosts for text in fields[name]):
            raise RetrieverError(
                self.name, "no item text holds a word to index", "look at the catalogue's texts"
            )

    def _read(self, text: str) -> str:
        """``text`` as the analyser takes it: pairs of characters with spaces between them."""
        return " ".join(bigram_words(text)) if self._bigrams else text

    def _terms(self, text: str) -> list[str]:
        terms: list[str] = self._analyser.analyze(self._read(text))
        return terms

    def _query(self, text: str) -> Any | None:
        """The query of a text's distinct words; None where it has none."""
        made, words = self._tantivy, dict.fromkeys(self._terms(text))
        if not words:
            return None
        parts = [
            (
                made.Occur.Should,
                made.Query.boost_query(
                    made.Query.term_query(self._schema, name, word, "freq"), boost
                ),
            )
            for word in words
            for name, boost in self._boosts.items()
        ]
        return made.Query.boolean_query(parts)

    def _found(self, query: Any, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N,) int64 and scores (N,) float32 of the best ``limit`` hits, best first."""
        hits = self._searcher.search(query, limit, count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        return np.array(rows, np.int64), np.array([score for score, _ in hits], np.float32)

    def _within(self, rows: list[int]) -> tuple[Any, Any]:
        """The clause that an item is one of ``rows``; it adds nothing to a score. (A set query does
        the same in twice the time.)
        """
        made = self._tantivy
        each = [(made.Occur.Should, made.Query.term_query(self._schema, "row", r)) for r in rows]
        pool = made.Query.boolean_query(each)
        return made.Occur.Must, made.Query.const_score_query(pool, 0.0)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Scores (B, P) float32 by a query that is filtered to the pool; see ``Retriever``."""
        made, rows_BP = self._tantivy, check_rows(self.name, texts, rows_BP, self.items)
        scores_BP = np.zeros(rows_BP.shape, dtype=np.float32)
        by_row = np.zeros(self.items, dtype=np.float32)
        for start, stop in pool_runs(rows_BP):
            rows_P = rows_BP[start][rows_BP[start] >= 0]
            within = self._within(np.unique(rows_P).tolist())
            for b in range(start, stop):
                query = self._query(texts[b])
                if query is None or not len(rows_P):
                    continue
                filtered = made.Query.boolean_query([(made.Occur.Must, query), within])
                rows, scores = self._found(filtered, len(rows_P))
                by_row[rows] = scores
                scores_BP[b] = by_row[rows_BP[b]]
                by_row[rows] = 0
        scores_BP[rows_BP < 0] = -np.inf
        return scores_BP

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best rows (B, K) and scores (B, K) of the whole catalogue; see ``Retriever``.

        Equal scores keep catalogue order, unless more than ``MARGIN`` items beyond the last one
        asked for have its score: tantivy chooses among those.
        """
        if not self.items:
            raise ValueError(f"retriever {self.name}: search before index")
        width = min(top_k, self.items)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        for b, text in enumerate(texts):
            query = self._query(text)
            if query is not None and width:
                rows, scores = self._found(query, min(width + MARGIN, self.items))
            else:
                rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
            rows_BK[b], scores_BK[b] = filled_up(rows, scores, width, self.items, 0.0)
        return rows_BK, scores_BK
