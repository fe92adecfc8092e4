"""The wheel: what is in it, what it says of itself, and that it works away from the source tree."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "cnnf_brain"
OPTIONAL = {
    "brainscore_core",
    "brainscore_vision",
    "captum",
    "skimage",
    "submitit",
    "huggingface_hub",
    "wandb",
}  # the extras'; their dependencies come along
BESIDE_BRAINSCORE = {"pytest"}  # imported where the extra is there, which brings them


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """The output of this interpreter in another folder, with no more than ``environment`` to say where packages are."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def data_files() -> set[str]:
    """What of the package is no Python file, as the source tree has it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources (a build in place would mix in what earlier builds left behind)."""
    source = tmp_path_factory.mktemp("source") / "cnnf brain"
    shutil.copytree(ROOT / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed into it, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    python(
        "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target", str(folder), str(wheel), cwd=folder
    )
    return folder


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name for name in names if name.startswith(f"{PACKAGE}/")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")}
    assert f"{PACKAGE}/py.typed" in inside
    assert inside == modules | data_files()
    (information,) = {name.split("/")[0] for name in names} - {PACKAGE}
    assert information.endswith(".dist-info")
    assert wheel.stat().st_size < 10e6


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "cnnf-brain"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    extras = {"brainscore", "cluster", "dev", "docs", "hub", "robustness", "tracking", "train", "visualize"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    required = metadata.get_all("Requires-Dist")
    optional = [line for line in required if "brainscore" in line.split(";")[0] or "boto3" in line]
    assert optional
    assert all("extra == 'brainscore'" in line.replace('"', "'") for line in optional)


@pytest.mark.slow
def test_the_console_script(installed: Path, tmp_path: Path) -> None:
    (script,) = importlib.metadata.Distribution.at(next(installed.glob("*.dist-info"))).entry_points
    assert (script.group, script.name) == ("console_scripts", "cnnf-brain")
    code = f"import sys; from {script.module} import {script.attr} as main; sys.exit(main(['--help']))"
    told = python("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert told.startswith("usage: cnnf-brain COMMAND")


def third_party_imports() -> set[str]:
    """Top-level names of all that the package imports from outside itself and the standard library."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / PACKAGE).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level and node.module}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {PACKAGE}


def test_every_import_is_a_named_dependency(metadata: Message) -> None:
    required = {
        re.split(r"[^\w.-]", line)[0].lower() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line
    }
    providers = importlib.metadata.packages_distributions()
    imported = third_party_imports() - OPTIONAL - BESIDE_BRAINSCORE
    assert {"numpy", "torch"} <= imported
    missing = {name for name in imported if not required & {provider.lower() for provider in providers.get(name, [])}}
    assert not missing, f"imported by the package, but no dependency in pyproject.toml: {missing}"


PROBE = f"""
import json, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(OPTIONAL)!r}:
            raise ModuleNotFoundError("the extra is not installed: " + name, name=name)

sys.meta_path.insert(0, Absent())
import {PACKAGE}
import {PACKAGE}.trainer
print(json.dumps({{
    "file": {PACKAGE}.__file__,
    "modules": [module.name for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}.")],
    "loaded": sorted({{name.split(".")[0] for name in sys.modules}}),
    "public": {{name: hasattr({PACKAGE}, name) for name in {PACKAGE}.__all__}},
    "version": {PACKAGE}.__version__,
}}))
"""


def test_the_installed_package_works_without_the_source_tree_and_the_extra(
    installed: Path, metadata: Message, tmp_path: Path
) -> None:
    # -P and another working directory keep the source tree out; PYTHONPATH comes before an editable install.
    report = json.loads(python("-P", "-W", "error", "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(report["file"]) == installed / PACKAGE / "__init__.py"
    assert not OPTIONAL & set(report["loaded"])
    assert f"{PACKAGE}.types" in report["modules"]
    assert report["version"] == metadata["Version"]
    assert report["public"], "cnnf_brain.__all__ is empty"
    assert all(report["public"].values()), report["public"]


ELSEWHERE = f"""
import importlib, os, pkgutil, signal, sys
import filelock, matplotlib.pyplot, pandas, pooch, psutil, sklearn, torch, torchvision, xarray  # they know this system

for name in ("resource", "fcntl", "pwd", "grp", "termios", "brainscore_core", "brainscore_vision"):
    sys.modules[name] = None
del os.O_CLOEXEC, os.O_NONBLOCK, signal.SIGKILL
import {PACKAGE}

names = [module.name for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}.")]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if "brainscore" not in str(error):
            raise
from {PACKAGE}.checks import peak_memory
from {PACKAGE}.io import read_bytes
assert peak_memory() > 2**20
assert b"__all__" in read_bytes({PACKAGE}.__file__)
print(len(names))
"""


def test_every_module_imports_where_unix_s_own_are_missing(tmp_path: Path) -> None:
    assert int(python("-c", ELSEWHERE, cwd=tmp_path, PYTHONPATH=str(ROOT))) > 60


@pytest.mark.slow
def test_the_extra_is_not_loaded_by_importing_the_package(tmp_path: Path) -> None:
    code = f"import sys, {PACKAGE}, {PACKAGE}.trainer; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = set(python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split())
    assert {"torch", PACKAGE} <= loaded
    assert not OPTIONAL & loaded
