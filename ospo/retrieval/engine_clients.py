"""The clients of search engines: one call, ``_msearch``, and what its failures mean.

Credentials come from the environment: ``OPENSEARCH_USER`` and ``OPENSEARCH_PASSWORD``;
``ELASTICSEARCH_USER`` and ``ELASTICSEARCH_PASSWORD``, or ``ELASTICSEARCH_API_KEY``. Certificates
are checked, against the file that ``OPENSEARCH_CA`` or ``ELASTICSEARCH_CA`` names, if any. Nothing
of that is ever part of a message.
"""

import ipaddress
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ospo.config.retrievers import engine_address, has_credentials
from ospo.errors import InputError

_ADDRESS = "name it as opensearch:URL/INDEX, for example opensearch:https://search:9200/products"
_NO_INDEX_NAME = frozenset('\\*?"<>| ,#:')


class EngineFailure(Exception):
    """A request, or one of its searches, that failed. ``again``: a later attempt may succeed."""

    def __init__(self, problem: str, fix: str, again: bool) -> None:
        self.problem, self.fix, self.again = problem, fix, again
        super().__init__(problem)


@dataclass(frozen=True)
class Address:
    """Where an engine is, and who asks. ``url`` ends without a slash; ``secrets`` are not shown."""

    name: str
    kind: str
    url: str
    index: str
    timeout: float
    connections: int
    ca: str = ""
    user: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def variables(self) -> str:
        """The environment variables of its credentials."""
        upper = self.kind.upper()
        key = f", or {upper}_API_KEY" if self.kind == "elasticsearch" else ""
        return f"{upper}_USER and {upper}_PASSWORD{key}"

    def shown(self, text: str) -> str:
        """``text`` without secrets, in one line of at most 300 characters."""
        for secret in self.secrets.values():
            text = text.replace(secret, "…")
        return " ".join(text.split())[:300]


def read_address(
    name: str, timeout: float, connections: int, environment: Mapping[str, str] = os.environ
) -> Address:
    """The address that a retriever's name holds. Raises InputError (one line) for a bad one, and
    for credentials that would go over the network unencrypted.
    """
    where, kind = f"retrievers: {name}", name.partition(":")[0]
    if has_credentials(name):
        problem = "the URL holds a user, a query or a fragment"
        raise InputError("params.yaml", f"retrievers: {kind}", problem, _ADDRESS)
    try:
        parts = urlsplit(engine_address(name))
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError as error:
        raise InputError("params.yaml", where, f"is no URL ({error})", _ADDRESS) from None
    path, _, index = parts.path.rstrip("/").rpartition("/")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("params.yaml", where, "holds no http:// or https:// URL", _ADDRESS)
    if not index or index.startswith(("_", "-", "+", ".")) or _NO_INDEX_NAME & set(index):
        raise InputError("params.yaml", where, "the URL ends with no index's name", _ADDRESS)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    upper = kind.upper()
    names = [f"{upper}_PASSWORD", *([f"{upper}_API_KEY"] if kind == "elasticsearch" else [])]
    secrets = {key: environment[key] for key in names if environment.get(key)}
    if secrets and parts.scheme == "http" and not _loopback(parts.hostname):
        problem = f"{' and '.join(secrets)} would go over the network unencrypted"
        raise InputError("params.yaml", where, problem, f"use https, or unset {names[0]}")
    ca = environment.get(f"{upper}_CA", "")
    if ca and not Path(ca).is_file():
        raise InputError(ca, "", f"file not found; {upper}_CA names it", f"mend {upper}_CA")
    user = environment.get(f"{upper}_USER", "")
    if f"{upper}_PASSWORD" in secrets and not user:
        problem = f"{upper}_PASSWORD is set and {upper}_USER is not"
        raise InputError("params.yaml", where, problem, f"set {upper}_USER")
    url = f"{parts.scheme}://{host}:{port}{path}"
    return Address(name, kind, url, index, timeout, connections, ca, user, secrets)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class EngineClient(ABC):
    """Sends searches to one index. Used by several threads at a time."""

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def msearch(self, lines: Sequence[dict[str, Any]]) -> Any:
        """The answer to an ``_msearch`` of header and body lines, as parsed from JSON. Raises
        EngineFailure.
        """

    def status_failure(self, status: int, said: object) -> EngineFailure:
        """What an HTTP status of 300 or more means, of a request or of one of its searches."""
        address, reason = self.address, self.address.shown(reason_of(said))
        answered = f"answered HTTP {status}" + (f" ({reason})" if reason else "")
        if status in (408, 429) or status >= 500:
            return EngineFailure(answered, "look at the engine's log; lower batch", True)
        fixes = {
            400: "mend the file that retrievers.engine.query names",
            401: f"set {address.variables} in the environment",
            403: f"give the user of {address.variables} the right to search {address.index!r}",
            404: f"make the index {address.index!r}, or name another: {address.kind}:URL/INDEX",
            413: "lower retrievers.engine.batch",
        }
        fix = fixes.get(status, f"look whether {address.url} is the engine itself")
        return EngineFailure(answered, fix, False)

    def late(self) -> EngineFailure:
        """No answer in time."""
        problem = f"no answer within {self.address.timeout:g} s"
        return EngineFailure(
            problem, "raise retrievers.engine.timeout or lower retrievers.engine.batch", True
        )

    def refused(self, error: object) -> EngineFailure:
        """No connection."""
        problem = f"no connection to {self.address.url} ({self.address.shown(str(error))})"
        return EngineFailure(problem, "start the engine, or mend the URL", True)

    def untrusted(self, error: object) -> EngineFailure:
        """A certificate that does not hold, or no TLS at all."""
        variable = f"{self.address.kind.upper()}_CA"
        return EngineFailure(
            f"TLS with {self.address.url} failed ({self.address.shown(str(error))})",
            f"name the file of its certificate authority in {variable}, or mend the URL",
            False,
        )

    def no_engine(self, said: object) -> EngineFailure:
        """An answer that no search engine gives."""
        reason = self.address.shown(reason_of(said)) or "nothing"
        fix = f"name the engine's own URL: {self.address.kind}:URL/INDEX"
        return EngineFailure(f"{self.address.url} answered no search result: {reason}", fix, False)


def reason_of(said: object) -> str:
    """The reason that stands in an error's body; of an HTML page that it is one."""
    if isinstance(said, Mapping):
        error = said.get("error", said)
        if isinstance(error, Mapping):
            causes = error.get("root_cause")
            cause = causes[0] if isinstance(causes, list) and causes else error
            reason = cause.get("reason") if isinstance(cause, Mapping) else None
            return str(reason or error.get("reason") or error.get("type") or "")
        return str(error)
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said or "")
    return (
        "an HTML page" if text.lstrip()[:200].lower().startswith(("<!doctype", "<html")) else text
    )


class OpenSearchClient(EngineClient):
    """By opensearch-py."""

    def __init__(self, address: Address) -> None:
        import opensearchpy

        super().__init__(address)
        _quiet("opensearch")
        password = address.secrets.get("OPENSEARCH_PASSWORD")
        self._errors: Any = opensearchpy.exceptions
        self._client: Any = opensearchpy.OpenSearch(
            [address.url],
            http_auth=(address.user, password) if password else None,
            verify_certs=True,
            ca_certs=address.ca or None,
            timeout=address.timeout,
            max_retries=0,
            pool_maxsize=address.connections,
        )

    def msearch(self, lines: Sequence[dict[str, Any]]) -> Any:
        """See ``EngineClient``."""
        errors = self._errors
        try:
            return self._client.msearch(body=list(lines), index=self.address.index)
        except errors.ConnectionTimeout:
            raise self.late() from None
        except errors.SSLError as error:
            raise self.untrusted(error.error) from None
        except errors.ConnectionError as error:
            raise self.refused(error.error) from None
        except errors.TransportError as error:
            said = error.info if isinstance(error.info, Mapping) else error.error
            raise self.status_failure(int(error.status_code), said) from None
        except errors.SerializationError as error:
            raise self.no_engine(str(error.args[0] if error.args else error)) from None


class ElasticsearchClient(EngineClient):
    """By elasticsearch-py, of the major version of the server."""

    def __init__(self, address: Address) -> None:
        import elasticsearch

        super().__init__(address)
        _quiet("elastic_transport")
        self._errors: Any = elasticsearch
        given: dict[str, Any] = {"ca_certs": address.ca} if address.ca else {}
        if key := address.secrets.get("ELASTICSEARCH_API_KEY"):
            given["api_key"] = key
        elif password := address.secrets.get("ELASTICSEARCH_PASSWORD"):
            given["basic_auth"] = (address.user, password)
        if address.url.startswith("https:"):
            given["verify_certs"] = True
        self._client: Any = elasticsearch.Elasticsearch(
            address.url,
            request_timeout=address.timeout,
            max_retries=0,
            retry_on_timeout=False,
            connections_per_node=address.connections,
            **given,
        )

    def msearch(self, lines: Sequence[dict[str, Any]]) -> Any:
        """See ``EngineClient``."""
        errors = self._errors
        try:
            answer = self._client.msearch(searches=list(lines), index=self.address.index)
            return answer.body
        except errors.ConnectionTimeout:
            raise self.late() from None
        except errors.SSLError as error:
            raise self.untrusted(error.message) from None
        except errors.ConnectionError as error:
            raise self.refused(error.message) from None
        except errors.UnsupportedProductError as error:
            raise self.no_engine(error.body or error.message) from None
        except errors.SerializationError as error:
            raise self.no_engine(error.message) from None
        except errors.ApiError as error:
            raise self.status_failure(int(error.meta.status), error.body) from None


def _quiet(name: str) -> None:
    """A client's own lines of each failed request; what they say is in this package's."""
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


CLIENTS: Mapping[str, type[EngineClient]] = {
    "opensearch": OpenSearchClient,
    "elasticsearch": ElasticsearchClient,
}
