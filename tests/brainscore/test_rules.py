"""Each rule of the website: a ZIP that keeps it, and one that breaks it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.brainscore,
    pytest.mark.filterwarnings("ignore:xarray subclass Score should explicitly define __slots__:FutureWarning"),
]

NAME = "my_model"
INIT = f"from brainscore_vision import model_registry\nmodel_registry['{NAME}'] = lambda: None\n"
GOOD = {
    "root/": "",
    "root/models/": "",
    f"root/models/{NAME}/": "",
    f"root/models/{NAME}/__init__.py": INIT,
    f"root/models/{NAME}/model.py": "",
    f"root/models/{NAME}/test.py": "",
    f"root/models/{NAME}/region_layer_map/": "",
    f"root/models/{NAME}/region_layer_map/{NAME}.json": "{}",
}


@pytest.fixture(scope="module")
def rules():
    from cnnf_brain.brainscore import rules

    return rules


@pytest.fixture
def broken(rules, tmp_path):
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


def test_a_zip_that_keeps_all_rules(broken):
    assert broken(GOOD) == {}


@pytest.mark.parametrize(
    ("entries", "rule", "said"),
    [
        (moved(f"root/models/{NAME}/model.py", f"root/models/{NAME}/my model.py"), "no_spaces", "my model.py"),
        ({**GOOD, "other/": ""}, "one_root", "other, root"),
        ({**GOOD, f"root/models/{NAME}/../../../x.py": ""}, "one_root", "../../../x.py"),
        ({**GOOD, "/etc/x": ""}, "one_root", "/etc/x"),
        ({**GOOD, "loose.py": ""}, "one_root", "loose.py"),
        ({**GOOD, "root/models/second/": "", "root/models/second/a.py": ""}, "plugin_folder", f"found {NAME}, second"),
        ({"root/": "", "root/model/": "", "root/model/a.py": ""}, "plugin_folder", "found none"),
        ({**GOOD, "root/models/notes.txt": ""}, "plugin_folder", "root/models/notes.txt"),
        ({**GOOD, "root/benchmarks/": ""}, "plugin_folder", "root/benchmarks/"),
        ({k: v for k, v in GOOD.items() if not k.endswith("/")}, "folder_entries", f"root/models/, root/models/{NAME}/"),
        ({k: v for k, v in GOOD.items() if k != "root/models/"}, "folder_entries", "missing: root/models/"),
        ({k: v for k, v in GOOD.items() if not k.endswith("test.py")}, "needed_files", f"missing: {NAME}/test.py"),
        ({k: v for k, v in GOOD.items() if not k.endswith("init__.py")}, "needed_files", f"missing: {NAME}/__init__.py"),
        ({**GOOD, f"root/models/{NAME}/metadata.yml": ""}, "no_metadata", "metadata.yml"),
        ({**GOOD, f"root/models/{NAME}/Metadata.YAML": ""}, "no_metadata", "Metadata.YAML"),
        ({**GOOD, f"root/models/{NAME}/our_metadata.yml": ""}, "no_metadata", "our_metadata.yml"),
        ({**GOOD, f"root/models/{NAME}/weights.pth": ""}, "no_weights", "weights.pth"),
        ({**GOOD, f"root/models/{NAME}/a/b.safetensors": ""}, "no_weights", "b.safetensors"),
        ({**GOOD, f"root/models/{NAME}/__init__.py": INIT + 'model_registry["two"] = 1\n'}, "one_identifier", f"found {NAME}, two"),
        ({**GOOD, f"root/models/{NAME}/__init__.py": "for n in names: model_registry[n] = 1\n"}, "one_identifier", "found none"),
        (moved(NAME, "my-model"), "no_hyphens", "my-model"),
        ({**GOOD, f"root/models/{NAME}/__init__.py": INIT.replace(NAME, "cnn-f")}, "no_hyphens", "cnn-f"),
        ({**GOOD, f"root/models/{NAME}/__init__.py": INIT.replace(NAME, "alexnet")}, "not_taken", "models/alexnet"),
        (moved(NAME, "vgg_16"), "not_taken", "vgg_16 is in"),
    ],
)  # fmt: skip
def test_a_zip_that_breaks_a_rule(broken, entries, rule, said):
    found = broken(entries)
    assert said in found[rule]


def test_a_zip_that_is_too_large(broken, rules, monkeypatch):
    noise = {f"root/models/{NAME}/data.txt": "".join(map(str, range(4000)))}
    assert broken({**GOOD, **noise}) == {}
    monkeypatch.setattr(rules, "MAX_BYTES", 10_000)
    assert list(broken({**GOOD, **noise})) == ["size"]


def test_what_is_no_zip(rules, tmp_path):
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
