"""The way from an image to a p-value can be read in the order of the map, and stands on one screen."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import cnnf_brain

ROOT = Path(__file__).resolve().parents[2]
SCREEN = 60  # lines


def path() -> list[str]:
    """The modules that CONTRIBUTING.md names between an image and a p-value."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("**From an image to a p-value**")[1].split("\n\n")[0]
    return re.findall(r"`([\w/]+)`", text.split("`compare/__init__.py`")[0])


def imported(module: str) -> set[str]:
    """The modules of this project that a module imports."""
    tree = ast.parse((ROOT / "cnnf_brain" / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnnf_brain"):
            inside = (node.module or "").split(".")[1:]
            found |= {"/".join(inside)} | {"/".join([*inside, alias.name]) for alias in node.names}
    return found


def test_at_most_seven_modules() -> None:
    assert 3 <= len(path()) <= 7
    for module in path():
        assert (ROOT / "cnnf_brain" / f"{module}.py").is_file()


def test_no_module_of_the_way_imports_a_later_stage() -> None:
    way = path()  # crossval stands beside: it makes the splits, and chooses layers by scores within them
    stages = {module: number for number, module in enumerate(way) if not module.endswith("crossval")}
    for module in stages:
        later = {other for other in imported(module) & set(stages) if stages[other] > stages[module]}
        assert not later, f"{module} imports {later}"


def test_the_conductor_fits_a_screen() -> None:
    source = inspect.getsource(cnnf_brain.compare)
    doc = cnnf_brain.compare.__doc__
    assert doc is not None
    body = len(source.splitlines()) - len(doc.splitlines())
    assert body <= SCREEN
    for name in ("Features", "check_features", "evaluate_region", "Comparison"):
        assert name in source
