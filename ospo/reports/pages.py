"""Self-contained HTML pages from the templates: one style sheet, every text from data escaped, no
script, nothing loaded from anywhere.
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ospo.evaluation.selection import label
from ospo.files import atomic_file
from ospo.reports.wording import interval_text, kept_text, p_text, percent, shown, signed


def environment() -> Environment:
    """The templates of ``ospo.reports`` with their filters. Autoescape is on for all of them; a
    name that a template does not get is an error.
    """
    made = Environment(
        loader=PackageLoader("ospo.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": shown,
        "signed": signed,
        "interval": interval_text,
        "p": p_text,
        "label": label,
        "percent": percent,
        "kept": kept_text,
        "coded": coded,
        "credit_class": credit_class,
    }
    return made


def page(template: str, **values: Any) -> str:
    """The page that a template (a file name in ``templates``) makes of ``values``."""
    return environment().get_template(template).render(**values)


def write_page(file: str | Path, template: str, **values: Any) -> None:
    """Write :func:`page`, atomically."""
    text = page(template, **values)
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def coded(text: str) -> Markup:
    """Words of ours with commands between backticks: escaped, the commands as code."""
    escaped = str(escape(text))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))  # noqa: S704 escaped above


def credit_class(value: float) -> str:
    """The colour class of a phrase: ``h1``–``h3`` helped, ``b1``–``b3`` hurt, ``n`` hardly either.

    The steps are in nDCG and the same for all pages, so that a strong colour means the same
    everywhere.
    """
    if abs(value) < 0.02:
        return "n"
    size = 1 + (abs(value) >= 0.1) + (abs(value) >= 0.3)
    return f"{'h' if value > 0 else 'b'}{size}"
