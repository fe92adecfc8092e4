"""Each rule of the website: a ZIP that keeps it, and one that breaks it."""

from __future__ import annotations

import struct
import tracemalloc
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


@pytest.mark.parametrize(
    ("entry", "content", "method", "said"),
    [
        ({}, bytes(300_000_000), zipfile.ZIP_DEFLATED, "it has 9 entries of 300 MB, expected at most 10000 and 200 MB"),
        ({"external_attr": 0o120777 << 16}, b"/etc/passwd", zipfile.ZIP_STORED, "entries that are links (root/new)"),
        ({"filename": f"{IN}test.py"}, b"", zipfile.ZIP_STORED, f"entries that come twice ({IN}test.py)"),
        ({"filename": IN[:-1]}, b"", zipfile.ZIP_STORED, f"entries that come twice ({IN[:-1]})"),
        ({}, b"0", zipfile.ZIP_BZIP2, "entries that are not packed by deflate (root/new)"),
        ({}, b"0", zipfile.ZIP_LZMA, "entries that are not packed by deflate (root/new)"),
    ],
    ids=["too large", "link", "twice", "folder and file", "bzip2", "lzma"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_not_unpacked(rules: Any, tmp_path: Path, entry: Any, content: bytes, method: int, said: str) -> None:
    path = write(tmp_path / "a.zip", GOOD)
    info = zipfile.ZipInfo("root/new")
    for name, value in entry.items():
        setattr(info, name, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, content, method)
    with pytest.raises(ValueError, match="is not unpacked") as caught:
        rules.read_submission(path)
    assert f"{path} is not unpacked: {said}; write it anew" == str(caught.value)


def test_a_zip_of_many_entries(rules: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {f"root/{number}": "" for number in range(10_001)})
    with pytest.raises(ValueError, match="it has 10001 entries of 0 MB, expected at most 10000 and 200 MB"):
        rules.read_submission(path)


def test_an_entry_that_is_larger_than_it_says(rules: Any, tmp_path: Path) -> None:
    """The size that it says is in its own header and in the list at the end; only so much is unpacked."""
    path, true, said = tmp_path / "a.zip", 200_000_123, 10
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("root/a", bytes(true))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", true)) == 2
    path.write_bytes(content.replace(struct.pack("<I", true), struct.pack("<I", said)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.zip cannot be read as a ZIP \(Bad CRC-32 for file 'root/a'\)"):
        rules.read_submission(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1", "model.py holds no IDENTITY"),
        ("IDENTITY = {'a': b'not JSON'}", "model.py holds no IDENTITY"),
        (f"IDENTITY = {'[' * 5000}", "model.py holds no IDENTITY"),
        (f"IDENTITY = {'-' * 100_000}1", "model.py holds no IDENTITY"),
        ("#" * 1_000_001, "model.py has 1.0 MB, expected at most 1 MB of code"),
    ],
    ids=["none", "not JSON", "deep", "deeper", "long"],
)
def test_an_identity_that_cannot_be_read(rules: Any, tmp_path: Path, code: str, said: str) -> None:
    submission = rules.read_submission(write(tmp_path / "a.zip", {**GOOD, f"{IN}model.py": code}))
    assert said in rules.reasons_not_to_run(submission)


@pytest.mark.parametrize(
    "given",
    [
        {"file": "../../a.pt"},
        {"file": "/a.pt"},
        {"sha256": "../../../../a"},
        {"stored": "../a.pt", "version_id": "1"},
        {"stored": "/a.pt", "version_id": "1"},
        {"stored": "user_1/../../a.pt", "version_id": "1"},
    ],
)
def test_weights_that_lead_out_of_their_folder(given: dict[str, str]) -> None:
    """They are fetched before the plugin's code is run, and so outside of every fence."""
    from cnnf_brain.brainscore.commitment import Weights

    with pytest.raises(ValueError, match="expected a file's name, hexadecimal digits, and a path without"):
        Weights(**{"file": "a.pt", "sha256": "0" * 64, **given})
