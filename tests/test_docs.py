"""The documentation: every page has its place, every local link leads somewhere, every public name is told, notebooks run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnnf_brain

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] != "api")  # api/: made by the build
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))


def name_of(path: Path) -> str:
    """A page as a table of contents names it, or as a test does."""
    return path.relative_to(DOCS).with_suffix("").as_posix()


def text_of(path: Path) -> str:
    """A page without its code, in which ``](`` and ``#`` are no Markdown."""
    return re.sub(r"^(```+).*?^\1$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def below(page: str) -> Iterator[str]:
    """The page, and all that the tables of contents below it name."""
    yield page
    for table in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL):
        for line in table.splitlines():
            if line and not line.startswith(":"):
                yield from below(line)


def test_every_page_is_in_the_table_of_contents_once() -> None:
    assert sorted(below("index")) == sorted(map(name_of, PAGES))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub, and the site, make of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead_links(path: Path, root: Path) -> list[str]:
    """The local links of a page that lead nowhere, or out of ``root``, where the site does not go."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        there = target.is_file() and target.is_relative_to(root)
        if not there or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_local_links_of_the_site_lead_somewhere(path: Path) -> None:
    assert dead_links(path, DOCS) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_local_links_of_the_repository_lead_somewhere(name: str) -> None:
    assert dead_links(ROOT / name, ROOT) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path.parent / "outside.md").write_text("# Outside\n")
    page.write_text(
        "# A page: *here*\n[a](#a-page-here) [b](#there) [c](none.md) [d](../outside.md) [e](https://x.org/none)\n"
    )
    assert dead_links(page, tmp_path) == ["#there", "none.md", "../outside.md"]


def test_the_reference_has_every_public_name() -> None:
    told = re.findall(r"^   (\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(cnnf_brain.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells as one program, in an empty folder and without a network."""
    monkeypatch.chdir(tmp_path)
    cells = re.findall(
        r"^```\{code-cell\}[^\n]*\n(?::[^\n]*\n)*(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert cells
    exec(compile("\n".join(cells), path.name, "exec"), {"__name__": "notebook"})
