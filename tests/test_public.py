"""The public names: which there are, that each is documented, and that its examples run."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import cnnf_brain

PUBLIC = [
    "CNNF",
    "Comparison",
    "FeatureNorm",
    "FeedbackResult",
    "FeedbackSettings",
    "LayerAt",
    "Network",
    "PLSRegression",
    "Preprocessing",
    "Recordings",
    "Scoring",
    "Study",
    "alexnet",
    "compare",
    "from_torchvision",
    "hub_folder",
    "list_layers",
    "load_network",
    "load_recordings",
    "small_net",
    "sweep",
    "verify",
    "vgg16",
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_the_public_names() -> None:
    assert cnnf_brain.__all__ == PUBLIC
    assert sorted(PUBLIC) == sorted(set(PUBLIC))


def undocumented(name: str) -> list[str]:
    """The parts of a public name (itself, its methods and properties) that have no docstring."""
    thing = getattr(cnnf_brain, name)
    members = vars(thing) if inspect.isclass(thing) else {}
    documented = (property, classmethod, staticmethod)
    parts = {name: thing} | {
        f"{name}.{member}": value
        for member, value in members.items()
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, documented))
    }
    return [part for part, value in parts.items() if not inspect.getdoc(value)]


@pytest.mark.parametrize("name", PUBLIC)
def test_each_has_an_example(name: str) -> None:
    thing = getattr(cnnf_brain, name)
    assert any(found.examples for found in doctest.DocTestFinder().find(thing, name)), f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_documented(name: str) -> None:
    assert undocumented(name) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the methods too; ``cb`` is the package, and the working directory an empty folder."""
    monkeypatch.chdir(tmp_path)
    thing = getattr(cnnf_brain, name)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    printed: list[str] = []
    for example in doctest.DocTestFinder().find(thing, name, extraglobs={"cb": cnnf_brain}):
        runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_an_example_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        """No sum.

        >>> 1 + 1
        3
        """

    monkeypatch.setattr(cnnf_brain, "wrong", wrong, raising=False)
    with pytest.raises(AssertionError, match="Expected:"):
        test_the_examples_run("wrong", Path(tmp_path), monkeypatch)
