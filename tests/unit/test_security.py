"""What the source must not hold: unpickling, code from a hub, unsafe unpacking, open servers,
secrets.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted(
    path for room in ("ospo", "flows", "benchmarks") for path in (ROOT / room).rglob("*.py")
)
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "telnetlib",
    "ftplib",
}
FORBIDDEN_CALLS = {
    "torch.load",
    "numpy.load",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "eval",
    "exec",
    "compile",
    "tempfile.mktemp",
}
# Calls of these names on anything: an archive's own names must not say where files go.
FORBIDDEN_METHODS = {"extractall", "unpack_archive"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(source: str) -> Iterator[str]:
    """What a piece of Python does that OSPO must not do."""
    tree = ast.parse(source)
    names = {"np": "numpy", "pd": "pandas"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found = {(node.module or "").partition(".")[0]}
        else:
            found = set()
        yield from (f"imports {name}" for name in found & FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            head, dot, tail = name.partition(".")
            name = names.get(head, head) + dot + tail
            if name in FORBIDDEN_CALLS and not any(
                k.arg == "allow_pickle"
                and isinstance(k.value, ast.Constant)
                and k.value.value is False
                for k in node.keywords
            ):
                yield f"calls {name}"
            if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
                yield f"calls .{node.func.attr}()"
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if node.arg == "trust_remote_code" and node.value.value:
                yield "trusts remote code"
            if node.arg in ("shell", "allow_pickle") and node.value.value:
                yield f"sets {node.arg}"
            if node.arg == "use_safetensors" and node.value.value is False:
                yield "loads pickled weights"
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield "names all network addresses"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_source_is_free_of(file: Path) -> None:
    assert list(faults(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "archive.extractall('.')",
        "shutil.unpack_archive('x')",
        "f(trust_remote_code=True)",
        "run('x', shell=True)",
        "f(use_safetensors=False)",
        "serve('0.0.0.0')",
        "yaml.load(x)",
        "eval('1')",
    ],
)
def test_the_check_sees(bad: str) -> None:
    assert list(faults(bad))


@pytest.mark.parametrize(
    "good",
    ["np.load('x', allow_pickle=False)", "yaml.safe_load(x)", "model.eval()", "re.compile('x')"],
)
def test_the_check_lets_through(good: str) -> None:
    assert not list(faults(good))


SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bhf_[A-Za-z0-9]{34}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{20,}|\bsk-[A-Za-z0-9]{40,}|\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}"
)


def test_no_secret_in_any_tracked_file() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            found = SECRETS.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{name} holds what looks like a secret: {found.group()[:12]}…"


def test_the_secret_scan_sees_one() -> None:
    assert SECRETS.search("key = 'AKIA" + "A" * 16 + "'")
    assert SECRETS.search("-----BEGIN RSA " + "PRIVATE KEY-----")
