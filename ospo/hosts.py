"""Names under which the servers of this machine answer.

A browser reaches 127.0.0.1 for any page whose owner points the page's name there (DNS rebinding);
that name stands in a request's ``Host``.
"""

import os

VARIABLE = "OSPO_ALLOWED_HOSTS"
"""Names under which a reverse proxy shows the servers, separated by commas; * answers all."""
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


def configured_hosts() -> list[str]:
    """The names in ``VARIABLE``, in lower case."""
    given = os.environ.get(VARIABLE, "").split(",")
    return [name.strip().lower() for name in given if name.strip()]


def allowed_hosts() -> list[str]:
    """Names in a request's ``Host`` that are answered, without port: this machine's own, and those
    configured.
    """
    return [*OWN_NAMES, *configured_hosts()]
