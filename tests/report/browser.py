"""A headless Chromium for the tests of pages: the system's, driven by playwright; skips with a reason where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """``$CNNF_BRAIN_BROWSER``, or a Chromium on PATH."""
    return os.environ.get("CNNF_BRAIN_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), None)


def launched() -> Iterator[Any]:
    """The browser, closed at the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install '.[dev]')")
    found = executable()
    if found is None:
        pytest.skip("needs a Chromium: `make browser`, or set CNNF_BRAIN_BROWSER to one")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root of a container has no sandbox
        yield browser
        browser.close()


class Opened:
    """A page from disk in its own context, with what it said on its console and asked of the network."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.resolve().as_uri())
