"""Counts of what preparation read, kept and dropped, and why."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

REASONS = {
    "judgement_other_locale": "judgements of another locale than data.esci.locale",
    "judgement_not_in_small_version": "judgements outside the small version "
    "(data.esci.small_version)",
    "judgement_label_not_chosen": "judgements of a label not in data.esci.labels; they are hard "
    "negatives only",
    "judgement_empty_query": "judgements without a query or query_id",
    "judgement_duplicate": "judgements of a query and product judged before; the better label "
    "stays",
    "judgement_unknown_product": "judgements of a product that is not in the products file, or has "
    "no text",
    "product_other_locale": "products of another locale",
    "product_without_id": "products without product_id",
    "product_without_text": "products whose texts are all empty once HTML is removed",
    "query_too_few_exact": "queries with fewer Exact products than data.esci.min_exact",
    "query_too_many_exact": "queries with more Exact products than data.esci.max_exact",
    "query_without_relevant": "queries without a product of positive gain",
    "query_little_title_overlap": "queries whose words are in none of their Exact titles "
    "(data.esci.title_overlap)",
    "query_beyond_max_requests": "queries left out by data.esci.max_requests",
    "relevant_beyond_pool": "relevant products beyond the places of a pool, worst first",
    "article_malformed_id": "articles whose id is not a number of at most ten digits",
    "customer_without_id": "customers without customer_id",
    "customer_duplicate": "customers listed before",
    "transaction_bad_date": "transactions whose t_dat is not a date YYYY-MM-DD from 1990 on",
    "transaction_future_date": "transactions dated after today",
    "transaction_negative_price": "transactions with a negative price (refunds)",
    "transaction_malformed_article_id": "transactions whose article_id is not a number of at most "
    "ten digits",
    "transaction_unknown_article": "transactions of an article that is not in articles.csv",
    "transaction_unknown_customer": "transactions of a customer who is not in customers.csv",
    "transaction_repeated_article": "transactions of an article the customer has bought before",
    "target_without_history": "purchases with fewer than data.hm.min_history earlier ones",
    "target_on_wrong_side_of_cut": "purchases of training customers after the cut, of held-out "
    "customers before it",
    "target_beyond_requests_per_customer": "purchases before a customer's last "
    "data.hm.requests_per_customer",
    "request_beyond_max_requests": "requests left out by data.hm.max_requests",
    "query_line_without_request": "lines of data.hm.queries_file that name no request",
}
"""Why something was left out, in words; docs/data.md and ``ospo data check`` show them."""


@dataclass
class Stats:
    """Counters that end up in stats.json. ``dropped`` maps a reason to a number of rows, queries or
    requests.
    """

    read: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        """Add ``count`` to a reason; the reason is listed even where the count is 0."""
        if reason not in REASONS:
            raise KeyError(f"no explanation for {reason!r} in REASONS")
        self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def keep(self, frame: pl.DataFrame, reason: str, condition: pl.Expr) -> pl.DataFrame:
        """Rows of ``frame`` that meet ``condition``; the others are counted under ``reason``."""
        kept = frame.filter(condition)
        self.drop(reason, len(frame) - len(kept))
        return kept

    def as_dict(self) -> dict[str, Any]:
        """The content of stats.json."""
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped, "used": self.used}
