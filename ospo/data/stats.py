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
    "judgement_unknown_query": "judgements of a query that is not in the queries file",
    "query_in_two_splits": "queries of a split that stand, in words a shopper would call the same, "
    "in a later one of train, validation, test",
    "query_too_little_evidence": "queries whose products were shown fewer than min_impressions "
    "times",
    "event_other_action": "events whose action is no impression, click, cart or purchase",
    "event_without_query": "events without a query: no id, or an id without a text",
    "event_without_product": "events that name no product",
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

FORMS = {
    "file_in_utf16": "files in UTF-16",
    "file_with_carriage_returns": "files whose lines end in a carriage return alone",
    "column_without_values": "columns without any value and without a type",
    "query_id_as_text": "files whose query_id is text",
    "query_id_as_decimal": "files whose query_id is text of decimal numbers (12.0)",
    "product_id_as_number": "files whose product_id is a number",
    "product_id_as_decimal": "files whose product_id is text of decimal numbers (12.0)",
    "label_as_word": "judgements whose label is in lower case or a word (exact, Substitute, …)",
    "judgement_locale_in_capitals": "judgements whose locale is in capitals or between spaces",
    "product_locale_in_capitals": "products whose locale is in capitals or between spaces",
    "article_id_as_decimal": "articles whose id is a decimal number (108775015.0)",
    "transaction_article_id_as_decimal": "transactions whose article_id is a decimal number",
    "transaction_date_with_time": "transactions whose t_dat has a time of day, which is left out",
}
"""What was read although the official files write it in another form, in words."""


@dataclass
class Stats:
    """Counters that end up in stats.json.

    dropped: reason → number of rows, queries or requests. used: settings that adapted to the data,
    and what they became. read_as: form other than the official one → number of files, columns or
    rows in it.
    """

    read: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    used: dict[str, int | str] = field(default_factory=dict)
    read_as: dict[str, int] = field(default_factory=dict)

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

    def read_in_form(self, form: str, count: int) -> None:
        """Add ``count`` to a form in which something was read; a form that did not occur is not
        listed.
        """
        if form not in FORMS:
            raise KeyError(f"no explanation for {form!r} in FORMS")
        if count:
            self.read_as[form] = self.read_as.get(form, 0) + int(count)

    def as_dict(self) -> dict[str, Any]:
        """The content of stats.json."""
        return {
            "read": self.read,
            "read_as": self.read_as,
            "kept": self.kept,
            "dropped": self.dropped,
            "used": self.used,
        }
