"""Downloads from a local server that misbehaves."""

import base64
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from ospo.data import fetch as fetching
from ospo.data.fetch import SOURCES, Source, download, fetch
from ospo.errors import InputError

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
FAST = {"attempts": 3, "timeout": 0.5, "pause": 0.0}


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the manner that the path names; ``server.log`` keeps (path, Range,
    Authorization).
    """

    def log_message(self, *args):
        pass

    def do_GET(self):
        mode = self.path.split("/")[1]
        seen = sum(path == self.path for path, _, _ in self.server.log)
        wanted = self.headers.get("Range")
        self.server.log.append((self.path, wanted, self.headers.get("Authorization")))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if (
            mode == "missing"
            or mode == "forbidden"
            or (mode == "busy" and seen < 2)
            or mode == "broken"
        ):
            self.send_error({"missing": 404, "forbidden": 403, "busy": 503, "broken": 500}[mode])
            return
        if mode == "elsewhere":
            self.send_response(302)
            self.send_header(
                "Location", f"http://localhost:{self.server.server_address[1]}/good/file"
            )
            self.end_headers()
            return
        body = CONTENT if mode != "header" else b'\xef\xbb\xbf"article_id",prod_name\n1,x\n'
        if mode == "wrong":
            body = CONTENT[:-1] + b"!"
        if mode == "zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(self.path.rsplit("/", 1)[1], CONTENT)
            body = buffer.getvalue()
        if start >= len(body):
            self.send_error(416)
            return
        resumes = wanted and mode != "deaf"
        part = body[start:] if resumes else body
        self.send_response(206 if resumes else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if mode == "cut":
            part = part[: len(CONTENT) // 4]
        elif mode == "cut-early" or (mode == "deaf" and seen == 0):
            part = part[:1000] if seen == 0 else (part if mode == "deaf" else b"")
        elif mode == "stalls" and seen == 0:
            self.wfile.write(part[:500_000])
            self.wfile.flush()
            time.sleep(1.5)
            return
        self.wfile.write(part)


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.log = []
    thread = threading.Thread(
        target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def _source(server, mode, sha=SHA, size=SIZE):
    return Source("file", f"http://127.0.0.1:{server.server_address[1]}/{mode}/file", size, sha)


@pytest.mark.parametrize("mode", ["good", "busy", "cut", "deaf", "stalls", "zip"])
def test_arrives_whole(mode, server, tmp_path):
    steps = []
    source = _source(server, mode, *((None, None) if mode == "zip" else (SHA, len(CONTENT))))
    path = download(source, tmp_path, None, lambda *step: steps.append(step), **FAST)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert steps[-1][1] == steps[-1][2]
    requests = len(server.log)
    assert requests == {"good": 1, "busy": 3, "cut": 4, "deaf": 2, "stalls": 2, "zip": 1}[mode]
    if mode == "cut":
        quarter = len(CONTENT) // 4
        assert [wanted for _, wanted, _ in server.log] == [
            None,
            *(f"bytes={n * quarter}-" for n in (1, 2, 3)),
        ]
    download(_source(server, mode), tmp_path, **FAST)
    assert len(server.log) == requests, "a file that is there and right is not asked for again"


@pytest.mark.parametrize(
    ("mode", "problem", "requests"),
    [
        ("missing", "no such file (HTTP 404)", 1),
        ("forbidden", "refuses access (HTTP 403)", 1),
        ("broken", "gave up after 3 tries (HTTP 500)", 3),
        ("wrong", "has sha256", 1),
        ("cut-early", "gave up after 3 tries", 4),
    ],
)
def test_fails_clearly(mode, problem, requests, server, tmp_path):
    with pytest.raises(InputError) as caught:
        download(_source(server, mode), tmp_path, **FAST)
    assert problem in str(caught.value)
    assert len(server.log) == requests
    assert not (tmp_path / "file").exists()


def test_resumes_in_the_next_run(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(CONTENT[:70_000])
    assert download(_source(server, "good"), tmp_path, **FAST).read_bytes() == CONTENT
    assert server.log[0][1] == "bytes=70000-"


def test_a_part_that_is_too_long_or_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / ".file.part").write_bytes(b"x" * (len(CONTENT) + 5))
    assert download(_source(server, "good", SHA, None), tmp_path, **FAST).read_bytes() == CONTENT
    (tmp_path / "file").unlink()
    (tmp_path / ".file.part").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="has sha256"):
        download(_source(server, "good"), tmp_path, **FAST)
    assert download(_source(server, "good"), tmp_path, **FAST).read_bytes() == CONTENT


def test_a_wrong_file_in_place_is_replaced(server, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    assert download(_source(server, "good"), tmp_path, **FAST).read_bytes() == CONTENT


def test_a_page_in_place_of_the_file_is_refused(server, tmp_path):
    """A page that asks to log in arrives as a success; H&M's files have no checksum to tell."""
    source = replace(_source(server, "good", None, None), columns=("article_id", "prod_name"))
    with pytest.raises(
        InputError, match=r"is not the official file .no column article_id; it begins b"
    ) as caught:
        download(source, tmp_path, **FAST)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    source = replace(
        source, name="page.csv", url=source.url.replace("/good/file", "/header/page.csv")
    )
    assert download(source, tmp_path, **FAST).read_bytes().startswith(b'\xef\xbb\xbf"article_id"')


def test_full_disk(server, tmp_path):
    script = """
import resource, signal, sys
from pathlib import Path
from ospo.data.fetch import Source, download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    download(Source("file", sys.argv[1]), Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""
    url = _source(server, "good").url
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"InputError {tmp_path}: file: cannot be written")
    assert "free disk space" in done.stdout
    assert not (tmp_path / "file").exists()
    assert download(_source(server, "good"), tmp_path, **FAST).read_bytes() == CONTENT, (
        "resumed once there is room"
    )
    assert server.log[-1][1] == "bytes=100000-"


def _ospo(*arguments, environment=None):
    command = [sys.executable, "-m", "ospo.cli", "data", "fetch", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment or os.environ,
        timeout=120,
    )


def test_command_line(server, tmp_path):
    base = f"http://127.0.0.1:{server.server_address[1]}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    done = _ospo("esci", "--out", str(tmp_path), "--mirror", f"{base}/missing")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ospo: ")]
    assert "no such file (HTTP 404)" in line
    assert "Traceback" not in done.stderr
    done = _ospo("hm", "--out", str(tmp_path), environment=clean)
    assert done.returncode == 2
    assert "KAGGLE_USERNAME, KAGGLE_KEY: not set" in done.stderr


def test_unreachable(tmp_path):
    with pytest.raises(InputError, match="gave up after 3 tries"):
        download(Source("file", "http://127.0.0.1:9/file"), tmp_path, **FAST)
    with pytest.raises(InputError, match="not https"):
        download(Source("file", "file:///etc/hostname"), tmp_path, **FAST)


def test_credentials_go_to_their_host_alone_and_are_never_printed(
    server, tmp_path, monkeypatch, capfd
):
    secret = {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "s3cret-key"}
    token = base64.b64encode(b"someone:s3cret-key").decode()
    monkeypatch.setitem(SOURCES, "hm", (_source(server, "elsewhere"),))
    fetch("hm", tmp_path, environment=secret, **FAST)
    assert server.log[0] == ("/elsewhere/file", None, f"Basic {token}")
    assert server.log[1] == ("/good/file", None, None)
    monkeypatch.setitem(SOURCES, "hm", (_source(server, "forbidden"),))
    (tmp_path / "file").unlink()
    with pytest.raises(InputError) as caught:
        fetch("hm", tmp_path, environment=secret, **FAST)
    shown = str(caught.value) + "".join(capfd.readouterr())
    assert "s3cret" not in shown
    assert token not in shown
    with pytest.raises(InputError, match="KAGGLE_USERNAME, KAGGLE_KEY: not set"):
        fetch("hm", tmp_path, environment={}, **FAST)


def test_mirror_and_unknown_dataset(server, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "hm", (Source("a.csv", "https://nowhere.invalid/a.csv"),))
    base = f"http://127.0.0.1:{server.server_address[1]}/good/"
    assert [
        path.name for path in fetch("hm", tmp_path / "new", mirror=base, environment={}, **FAST)
    ] == ["a.csv"]
    assert server.log == [("/good/a.csv", None, None)]
    with pytest.raises(InputError, match="unknown dataset"):
        fetch("amazon", tmp_path)


def test_official_sources_are_complete():
    assert all(
        source.url.startswith("https://") for sources in SOURCES.values() for source in sources
    )
    assert all(len(source.sha256 or "") == 64 and source.size for source in SOURCES["esci"])
    assert fetching.SOURCES.keys() == {"esci", "hm"}
