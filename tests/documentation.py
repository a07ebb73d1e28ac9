"""README and docs as the tests read them: pages, Python blocks, command lines, links and anchors."""

import re
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from markdown.extensions.toc import slugify

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# First words of the lines in indented blocks that are commands; other indented lines are text.
PROGRAMS = (
    "ospo make dvc prefect python mlflow accelerate pytest trl pip git curl apt-get createuser "
    "createdb set export cd for do done"
).split()
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*\s+")


@dataclass(frozen=True)
class Command:
    """A command line and the page that shows it. ``whole``: in a block, so it is to be typed as it
    stands; a command within a sentence may be a mere name (`ospo doctor`).
    """

    page: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """Its words, without quotes."""
        import shlex

        return shlex.split(self.text)

    @property
    def mention(self) -> bool:
        """Whether it only names a command: neither options nor arguments that need checking."""
        return not self.whole and len(self.words) <= 2 + (self.words[1:2] in (["data"], ["config"]))


def name(page: Path) -> str:
    """The page as the tests call it."""
    return page.relative_to(ROOT).as_posix()


def python_blocks(page: Path) -> list[str]:
    """The page's Python, in order; the blocks of a page are one program."""
    return [body for _, language, body in _FENCE.findall(page.read_text()) if language == "python"]


def without_fences(text: str) -> str:
    """``text`` without its fenced blocks."""
    return _FENCE.sub("", text)


def _cut(line: str) -> list[str]:
    """The commands of one line: without comments, prompts and leading assignments, cut at ``;`` and
    ``&&``; optional parts in brackets are included.
    """
    line = re.sub(r"\s+#.*", "", line).strip()
    if "'" not in line and '"' not in line:
        line = re.sub(r"[\[\]]", "", line)
    parts = [part.strip() for part in re.split(r"\s*(?:;|&&)\s*", line)]
    found = []
    for part in parts:
        part = re.sub(r"^do\s+", "", part.removeprefix(".venv/bin/").removeprefix("srun … "))
        while _ASSIGNMENT.match(part):
            part = _ASSIGNMENT.sub("", part)
        if part.split(" ")[0] in PROGRAMS and part not in ("done",):
            found.append(part)
    return found


def commands() -> list[Command]:
    """Every command line of every page, each once per page."""
    found: dict[Command, None] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        shell = [b for _, language, b in _FENCE.findall(text) if language in ("bash", "sh")]
        plain = without_fences(text)
        lines = [line for block in shell for line in block.splitlines()]
        lines += re.findall(r"^ {4,}(\S.*)$", plain, re.MULTILINE)
        for line in lines:
            found |= {Command(name(page), command, True): None for command in _cut(line)}
        rest = re.sub(r"^ {4,}\S.*$", "", plain, flags=re.MULTILINE)
        for line in re.findall(r"`([^`]+)`", rest):
            line = " ".join(line.split())
            found |= {Command(name(page), c, False): None for c in _cut(line) if " " in c}
    return list(found)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", without_fences(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        anchor, number = slugify(plain, "-"), 0
        while anchor in found:
            number += 1
            anchor = f"{slugify(plain, '-')}_{number}"
        found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """The page's links and pictures that lead to files of the repository."""
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", without_fences(page.read_text()))
