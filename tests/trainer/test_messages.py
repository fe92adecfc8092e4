"""Errors of the trainer's library speak of arguments; only the command lines have flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "cnnf_brain" / "trainer"


def texts(code: str) -> list[str]:
    """All strings of a module but its docstrings."""
    tree = ast.parse(code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in docstrings]  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.py")), ids=lambda path: path.name)
def test_no_message_names_a_flag(path: Any) -> None:
    assert texts('"""--a"""\nraise ValueError(f"give --b {c}")') == ["give --b "]
    flags = [text for text in texts(path.read_text()) if re.search(r"--[a-z]", text) and "(tar --" not in text]
    assert flags == []  # tar's own are no flags of ours
