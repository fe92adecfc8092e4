"""The files that go with a release: one version, one title, one reference, and all of them readable by who reads them."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import cnnf_brain

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with pre-commit")
ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


def read(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cnnf_brain.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", cnnf_brain.__version__)
    assert f"\n## {cnnf_brain.__version__} " in read("CHANGELOG.md")


def test_who_made_it_and_what_it_is_called_agree() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    citation, archived = yaml.safe_load(read("CITATION.cff")), json.loads(read(".zenodo.json"))
    assert citation["authors"] == project["authors"] == archived["creators"]
    assert citation["title"] == archived["title"]
    assert citation["license"] == archived["license"] == project["license"]
    assert citation["keywords"] == archived["keywords"] == project["keywords"]
    (paper,) = citation["references"]
    assert paper["url"] == project["urls"]["Paper"] == archived["related_identifiers"][0]["identifier"]
    people = [f"{person['family-names']}, {person['given-names']}" for person in paper["authors"]]
    texts = tomllib.loads(read("cnnf_brain/brainscore/plugin.toml"))
    assert " and ".join(people) in " ".join(texts["bibtex"].split())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_github_reads_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_only_the_job_that_publishes_can_publish() -> None:
    release = yaml.safe_load(read(".github/workflows/release.yml"))
    allowed = {name for name, job in release["jobs"].items() if "id-token" in job.get("permissions", {})}
    assert allowed == {"publish"}
    assert "id-token" not in release["permissions"]
    (publisher,) = (step["uses"] for step in release["jobs"]["publish"]["steps"] if "pypa/" in step["uses"])
    assert re.fullmatch(r"pypa/gh-action-pypi-publish@[0-9a-f]{40}", publisher)


@pytest.mark.parametrize(
    ("text", "refused"),
    [("[a](docs/a.md)", True), ("![a](docs/a.png)", True), ("[a](https://x.org/a.md#b) `x[i](2, y)`", False)],
)
def test_a_release_with_relative_links_is_refused(tmp_path: Path, text: str, refused: bool) -> None:
    steps = yaml.safe_load(read(".github/workflows/release.yml"))["jobs"]["build"]["steps"]
    (check,) = (step["run"] for step in steps if "README" in step.get("name", ""))
    (tmp_path / "README.md").write_text(f"# A\n\n{text}\n")
    done = subprocess.run(["bash", "-e", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "relative" in done.stderr) == (int(refused), refused)


def test_the_image_holds_all_that_a_build_needs() -> None:
    copied = [word for line in read("Dockerfile").splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "cnnf_brain"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert re.findall(r"ARG TORCH=(\w+)", read("Dockerfile")) == ["cpu"]
