"""Each rule of the website: a ZIP that keeps it, and one that breaks it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAME = "my_model"
IN = f"root/models/{NAME}/"
INIT = f"from brainscore_vision import model_registry\nmodel_registry['{NAME}'] = lambda: None\n"
GOOD = {
    "root/": "",
    "root/models/": "",
    IN: "",
    f"{IN}__init__.py": INIT,
    f"{IN}model.py": "",
    f"{IN}test.py": "",
    f"{IN}region_layer_map/": "",
    f"{IN}region_layer_map/{NAME}.json": "{}",
}


@pytest.fixture(scope="module")
def rules() -> Any:
    from cnnf_brain.brainscore import check

    return check


@pytest.fixture
def broken(rules: Any, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Names of the rules that a ZIP of these entries breaks, with what is said."""

    def broken(entries: dict[str, str]) -> dict[str, str]:
        path = write(tmp_path / "a.zip", entries)
        zip_ = rules.read_submission(path)
        found = {rule.name: rule.broken(zip_) for rule in rules.RULES}
        findings = list(rules.check_rules(zip_))
        assert [finding.status for finding in findings] == ["failed" if words else "ok" for words in found.values()]
        assert all(finding.rule for finding in findings)
        return {name: words for name, words in found.items() if words}

    return broken


def write(path: Path, entries: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def moved(before: str, after: str) -> dict[str, str]:
    return {name.replace(before, after): content.replace(before, after) for name, content in GOOD.items()}


def test_a_zip_that_keeps_all_rules(broken: Callable[..., dict[str, str]]) -> None:
    assert broken(GOOD) == {}


def without(end: str) -> dict[str, str]:
    return {name: content for name, content in GOOD.items() if not name.endswith(end)}


def registers(text: str) -> dict[str, str]:
    return {**GOOD, f"{IN}__init__.py": text}


@pytest.mark.parametrize(
    ("entries", "rule", "said"),
    [
        (moved(f"{IN}model.py", f"{IN}my model.py"), "no_spaces", "my model.py"),
        ({**GOOD, "other/": ""}, "one_root", "other, root"),
        ({**GOOD, f"{IN}../../../x.py": ""}, "one_root", "../../../x.py"),
        ({**GOOD, "/etc/x": ""}, "one_root", "/etc/x"),
        ({**GOOD, "loose.py": ""}, "one_root", "loose.py"),
        ({**GOOD, "root/models/second/": "", "root/models/second/a.py": ""}, "plugin_folder", f"found {NAME}, second"),
        ({"root/": "", "root/model/": "", "root/model/a.py": ""}, "plugin_folder", "found none"),
        ({**GOOD, "root/models/notes.txt": ""}, "plugin_folder", "root/models/notes.txt"),
        ({**GOOD, "root/benchmarks/": ""}, "plugin_folder", "root/benchmarks/"),
        (without("/"), "folder_entries", f"root/models/, {IN}"),
        (without("root/models/"), "folder_entries", "missing: root/models/"),
        (without("test.py"), "needed_files", f"missing: {NAME}/test.py"),
        (without("init__.py"), "needed_files", f"missing: {NAME}/__init__.py"),
        ({**GOOD, f"{IN}metadata.yml": ""}, "no_metadata", "metadata.yml"),
        ({**GOOD, f"{IN}Metadata.YAML": ""}, "no_metadata", "Metadata.YAML"),
        ({**GOOD, f"{IN}our_metadata.yml": ""}, "no_metadata", "our_metadata.yml"),
        ({**GOOD, f"{IN}weights.pth": ""}, "no_weights", "weights.pth"),
        ({**GOOD, f"{IN}a/b.safetensors": ""}, "no_weights", "b.safetensors"),
        (registers(INIT + 'model_registry["two"] = 1\n'), "one_identifier", f"found {NAME}, two"),
        (registers("for n in names: model_registry[n] = 1\n"), "one_identifier", "found none"),
        (moved(NAME, "my-model"), "no_hyphens", "my-model"),
        (registers(INIT.replace(NAME, "cnn-f")), "no_hyphens", "cnn-f"),
        (registers(INIT.replace(NAME, "alexnet")), "not_taken", "models/alexnet"),
        (moved(NAME, "vgg_16"), "not_taken", "vgg_16 is in"),
    ],
)
def test_a_zip_that_breaks_a_rule(broken: Callable[..., dict[str, str]], entries: Any, rule: str, said: str) -> None:
    found = broken(entries)
    assert said in found[rule]


def test_a_zip_that_is_too_large(broken: Callable[..., dict[str, str]], rules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = {f"{IN}data.txt": "".join(map(str, range(4000)))}
    assert broken({**GOOD, **noise}) == {}
    monkeypatch.setattr(rules, "MAX_BYTES", 10_000)
    assert list(broken({**GOOD, **noise})) == ["size"]


def test_what_is_no_zip(rules: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", GOOD)
    with pytest.raises(FileNotFoundError, match=r"b\.zip: no such file"):
        rules.read_submission(tmp_path / "b.zip")
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    place = content.index(b"model_registry[")
    content[place] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    for name in ("cut.zip", "flipped.zip"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a ZIP \(.*\); write it anew"):
            rules.read_submission(tmp_path / name)
