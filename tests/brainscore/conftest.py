"""Brain-Score with homes of its own, and what several files of tests share."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brainscore.toy_networks import REGIONS

from cnnf_brain.model.zoo import shipped_weights

FOLDER = Path(__file__).parent
# of brainscore-core's own class, when it is first imported
SLOTS = "ignore:xarray subclass Score should explicitly define __slots__:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need the extra, and take Brain-Score's own warning."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.brainscore)
            item.add_marker(pytest.mark.filterwarnings(SLOTS))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Brain-Score reads where its caches lie when it is imported, so no file of tests may import it before ``homes``."""
    if "result_caching" in sys.modules:
        raise pytest.UsageError("a file of tests imports Brain-Score at its top; import it inside of tests and fixtures")


@pytest.fixture(scope="session", autouse=True)
def in_homes(homes: Path) -> None:
    """All tests of this folder have Brain-Score's caches there."""


@pytest.fixture(scope="session")
def asked() -> Callable[..., Any]:
    """A request for a plugin of the shipped small network, with what is given in place of that."""
    from cnnf_brain.brainscore.plugin import Request

    def asked(**given: Any) -> Request:
        common = {"weights": shipped_weights(True), "model": "small", "regions": REGIONS, "neural_only": True}
        return Request(**{**common, **given})

    return asked


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder behind a server on this machine, and its address."""
    folder = tmp_path_factory.mktemp("hub")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
