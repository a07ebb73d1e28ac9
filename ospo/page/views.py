"""Templates and the style sheet of the page. Autoescape is on for every template: text from data
stays text.
"""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ospo.evaluation.selection import label
from ospo.reports.pages import credit_class
from ospo.reports.wording import p_text, shown, signed


def environment() -> Environment:
    """The templates of ``ospo.page`` with their filters; a name that a template does not get is an
    error.
    """
    made = Environment(
        loader=PackageLoader("ospo.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": shown,
        "signed": signed,
        "p": p_text,
        "label": label,
        "credit_class": credit_class,
        "pairs": lambda choices: [(choice.key, choice.name) for choice in choices],
        "zip_same": lambda names: [(name, name) for name in names],
        "zip_roles": _roles,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return made


def _roles(retrievers: list[str]) -> list[tuple[str, str]]:
    """The training retriever is the first one."""
    return [
        (name, f"{name} ({'unseen' if number else 'training'})")
        for number, name in enumerate(retrievers)
    ]


_ENVIRONMENT = environment()


def page(template: str, **values: Any) -> str:
    """The page that a template makes of ``values``."""
    return _ENVIRONMENT.get_template(template).render(**values)


def style() -> str:
    """The one style sheet: that of the reports, then what this page adds."""
    reports, own = files("ospo.reports"), files("ospo.page")
    parts = [
        reports.joinpath("templates/charts.css"),
        reports.joinpath("templates/base.css"),
        own.joinpath("static/page.css"),
    ]
    return "\n".join(part.read_text(encoding="utf-8") for part in parts)
