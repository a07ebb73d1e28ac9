"""A double of OpenSearch and Elasticsearch: an HTTP server that answers the used part of their API,
``POST /INDEX/_msearch``, from a tantivy index. It is none of them: what their own query language,
scores and error texts are beyond this is not tested here.

As a program it serves a prepared catalogue: ``python tests/engine_double.py CATALOGUE.parquet
--latency 5`` prints its URL; each search takes that many milliseconds, one after another within a
request, as many requests at a time as come.
"""

import argparse
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import tantivy

from ospo.retrieval.tantivy import item_fields

JSON = "application/json"
Answer = tuple[int, str, bytes]


class BadQuery(Exception):
    """What the double does not know; the real ones answer 400 as well."""


class Shop:
    """The index: title, description, attributes and ids of a catalogue."""

    def __init__(self, catalogue: pl.DataFrame) -> None:
        schema = tantivy.SchemaBuilder()
        for name in ("title", "description", "attributes"):
            schema.add_text_field(name, tokenizer_name="en_stem")
        schema.add_text_field("_id", stored=True, tokenizer_name="raw")
        self.schema = schema.build()
        self.index = tantivy.Index(self.schema)
        writer, fields = self.index.writer(50_000_000, 1), item_fields(catalogue)
        for row, name in enumerate(catalogue["item_id"]):
            document = tantivy.Document(_id=name)
            for key, values in fields.items():
                document.add_text(key, values[row])
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        self.index.reload()
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for kind in ("remove_long", "lowercase", "stemmer"):
            given = {"remove_long": (40,), "lowercase": (), "stemmer": ("english",)}[kind]
            builder = builder.filter(getattr(tantivy.Filter, kind)(*given))
        self.analyser: Any = builder.build()

    def query(self, body: Any) -> Any:
        """A tantivy query of one in JSON: match_all, ids, match, multi_match and bool."""
        [(kind, given)] = body.items()
        if kind == "match_all":
            return tantivy.Query.const_score_query(tantivy.Query.all_query(), 1.0)
        if kind == "ids":
            ids = tantivy.Query.term_set_query(self.schema, "_id", given["values"])
            return tantivy.Query.const_score_query(ids, 1.0)
        if kind == "match":
            [(name, text)] = given.items()
            return self._words([name], text)
        if kind == "multi_match":
            return self._words(given["fields"], given["query"])
        if kind == "bool":
            parts = [(tantivy.Occur.Must, self.query(each)) for each in given.get("must", [])]
            for each in given.get("filter", []):
                within = tantivy.Query.const_score_query(self.query(each), 0.0)
                parts.append((tantivy.Occur.Must, within))
            return tantivy.Query.boolean_query(parts)
        raise BadQuery(f"unknown query [{kind}]")

    def _words(self, fields: list[str], text: str) -> Any:
        parts = []
        for name in fields:
            name, _, boost = name.partition("^")
            if name not in ("title", "description", "attributes"):
                continue  # the real ones find nothing in an unmapped field
            for word in dict.fromkeys(self.analyser.analyze(text)):
                term = tantivy.Query.term_query(self.schema, name, word)
                boosted = tantivy.Query.boost_query(term, float(boost or 1))
                parts.append((tantivy.Occur.Should, boosted))
        return tantivy.Query.boolean_query(parts) if parts else tantivy.Query.empty_query()

    def search(self, body: dict[str, Any]) -> dict[str, Any]:
        """One response of an _msearch."""
        searcher = self.index.searcher()
        try:
            query = self.query(body["query"])
        except BadQuery as error:
            cause = {"type": "parsing_exception", "reason": str(error)}
            return {"error": cause | {"root_cause": [cause]}, "status": 400}
        hits = searcher.search(query, max(body.get("size", 10), 1), count=False).hits
        found = [
            {"_index": "products", "_id": searcher.doc(at)["_id"][0], "_score": score}
            for score, at in hits[: body.get("size", 10)]
        ]
        shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
        return {
            "took": 1,
            "timed_out": False,
            "_shards": shards,
            "hits": {"hits": found},
            "status": 200,
        }


@dataclass
class Double:
    """A running server. ``behave(path, headers, bodies)`` may answer in its place; ``change`` may
    alter the responses.
    """

    shop: Shop
    index: str = "products"
    latency: float = 0.0  # seconds a search
    behave: Callable[[str, Any, list[Any]], Answer | None] | None = None
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    requests: list[tuple[str, dict[str, str], list[Any]]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def searches(self) -> list[Any]:
        """The bodies of all searches so far."""
        return [body for _, _, lines in self.requests for body in lines[1::2]]

    def answer(self, path: str, headers: dict[str, str], lines: list[Any]) -> Answer:
        """Status, content type and body."""
        with self.lock:
            self.requests.append((path, headers, lines))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.behave is not None and (own := self.behave(path, headers, lines)) is not None:
                return own
            if path != f"/{self.index}/_msearch":
                cause = {"type": "index_not_found_exception", "reason": f"no such index [{path}]"}
                return 404, JSON, json.dumps({"error": cause, "status": 404}).encode()
            time.sleep(self.latency * len(lines[1::2]))
            responses = [self.shop.search(body) for body in lines[1::2]]
            if self.change is not None:
                responses = self.change(responses)
            return 200, JSON, json.dumps({"took": 1, "responses": responses}).encode()
        finally:
            with self.lock:
                self.at_once -= 1


def make_server(double: Double, port: int = 0) -> ThreadingHTTPServer:
    """A server of ``double`` on 127.0.0.1, not yet serving."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            lines = [json.loads(line) for line in raw.decode().splitlines() if line]
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, kind, body = double.answer(self.path.split("?")[0], headers, lines)
            if kind == JSON and "compatible-with" in headers.get("accept", ""):
                kind = headers["accept"].split(",")[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if kind != "text/html":
                self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        open: ClassVar[set[socket.socket]] = set()

        def process_request(self, request: Any, client_address: Any) -> None:
            self.open.add(request)
            super().process_request(request, client_address)

        def server_close(self) -> None:
            """Kept-alive connections end too, as those of a process that ends."""
            super().server_close()
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away."""

    return Server(("127.0.0.1", port), Handler)


@contextmanager
def serving(double: Double, port: int = 0) -> Iterator[Double]:
    """``double`` under ``double.url`` within."""
    server = make_server(double, port)
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve a catalogue until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds a search")
    arguments = parser.parse_args()
    shop = Shop(pl.read_parquet(arguments.catalogue))
    server = make_server(Double(shop, latency=arguments.latency / 1000))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
