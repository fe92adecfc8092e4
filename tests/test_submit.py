"""`python -m cnnf_brain.submit`: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from PIL import Image

from cnnf_brain import submit
from cnnf_brain.model.zoo import sequential, shipped_weights

pytestmark = [
    pytest.mark.brainscore,
    pytest.mark.usefixtures("homes"),
    pytest.mark.filterwarnings("ignore:xarray subclass Score should explicitly define __slots__:FutureWarning"),
]

SMALL = ["--model", "small", "--neural-only", "--regions", "V1=conv1", "V2=pool2@1", "V4=pool2", "IT=relu3"]
CLOSED = "http://127.0.0.1:9"  # an address where nobody answers
CNN_REGIONS = ["V1=conv1", "V2=pool2", "V4=pool2", "IT=relu3"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """Exit code, output and the lines on stderr."""

    def run(*argv: Any) -> tuple[int, str, list[str]]:
        code = submit.main([str(one) for one in argv])
        out, err = capsys.readouterr()
        return code, out, err.strip().splitlines()

    return run


def test_a_zip_and_a_folder_for_each_identifier(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    tmp_path = tmp_path / "out"
    stored = ["--stored", "user_12/small.safetensors", "v-1"]
    code, out, err = run("--weights", shipped_weights(True), "--output", tmp_path, *SMALL, *stored)
    assert (code, err) == (0, [])
    archives = sorted(path.name for path in tmp_path.glob("*.zip"))
    assert len(archives) == 2
    assert archives[0].startswith("small_CNNF_")
    assert archives[1].startswith("small_CNN_")
    for name in archives:
        identifier = name.removesuffix(".zip")
        assert (tmp_path / identifier / "__init__.py").is_file()
        assert identifier in out
        with zipfile.ZipFile(tmp_path / name) as opened:
            assert sum(one.endswith(f"models/{identifier}/__init__.py") for one in opened.namelist()) == 1
            assert "'version_id': 'v-1'" in opened.read(f"{identifier}/models/{identifier}/model.py").decode()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["kind"] == "submit"
    assert record["weights"] == {name.removesuffix(".zip"): str(Path(shipped_weights(True)).resolve()) for name in archives}
    assert "draft" not in out


def test_a_control_of_its_own_weights(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    tmp_path = tmp_path / "out"
    code, _, _ = run(
        *("--weights", shipped_weights(True), "--control", shipped_weights(False), "--output", tmp_path, *SMALL),
        *("--url", "https://hub/a", "--control-url", "https://hub/b"),
    )
    assert code == 0
    (cnnf,) = tmp_path.glob("small_CNNF_*/model.py")
    (cnn,) = tmp_path.glob("small_CNN_*/model.py")
    assert "'url': 'https://hub/a'" in cnnf.read_text()
    assert "'url': 'https://hub/b'" in cnn.read_text()
    assert "'iterations': 0" in cnn.read_text()
    assert cnnf.parent.name.split("_")[2] != cnn.parent.name.split("_")[2]


def test_no_iterations_write_the_cnn_alone(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    tmp_path = tmp_path / "out"
    regions = ["--regions", "V1=conv1", "V2=pool2", "V4=pool2", "IT=relu3"]
    code, out, _ = run(
        *("--weights", shipped_weights(False), "--output", tmp_path, "--model", "small", "--neural-only", *regions),
        *("--iterations", 0),
    )
    assert code == 0
    (archive,) = tmp_path.glob("*.zip")
    assert archive.name.startswith("small_CNN_")
    assert "a draft: it names no place to load its weights from" in out


def test_weights_of_a_cnn_are_a_cnn(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    """Their card says that they run no feedback: no CNN-F is made of them unless it is asked for."""
    state = safetensors.torch.load_file(shipped_weights(False))
    weights = tmp_path / "cnn.safetensors"
    safetensors.torch.save_file(state, weights, {"card": json.dumps({"feedback": {"iterations": 0}})})
    code, _, _ = run("--weights", weights, "--output", tmp_path / "out", *SMALL[:3], "--regions", *CNN_REGIONS)
    assert code == 0
    (archive,) = (tmp_path / "out").glob("*.zip")
    assert archive.name.startswith("small_CNN_")
    flags = ["--control", weights, "--output", tmp_path / "again", *SMALL[:3], "--regions", *CNN_REGIONS]
    code, _, err = run("--weights", weights, *flags)
    assert code == 1
    assert "run no feedback, so they are the CNN themselves" in err[0]


def test_settings_of_the_feedback_are_told(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    state = safetensors.torch.load_file(shipped_weights(True))
    bare = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(state, bare)
    for weights, carded in ((bare, False), (shipped_weights(True), True)):
        code, out, _ = run(
            "--weights", weights, "--output", tmp_path / "out", *SMALL, "--iterations", 2, "--step-size", "0.25"
        )
        assert code == 0
        (line,) = (line for line in out.splitlines() if line.startswith("  feedback"))
        assert "step=0.25" in line
        assert "time bins 70-120 120-170 170-220 ms" in line
        assert ("the weights have no card" in line) != carded


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--name", "cnn-f"], "identifier 'cnn-f' may hold letters, digits and _ alone"),
        (["--regions", "V1=conv1", "V2=conv9", "V4=pool2", "IT=relu3"], "layer 'conv9' is not known; did you mean"),
        (["--image-size", "0"], "image size is 0, expected a whole number of pixels"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--time-bins", "70-120", "120-170"], "2 time bins for iterations 0 to 2; expected 3"),
        (["--weights", "none.safetensors"], "weights none.safetensors: no such file"),
        (["--bibtex", "none.bib"], "none.bib: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path, flags: list[str], said: str
) -> None:
    code, _, err = run("--weights", shipped_weights(True), "--output", tmp_path / "out", *SMALL, *flags)
    assert code == 1
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert said in err[0]
    assert list(tmp_path.iterdir()) == []  # no empty folder either


def test_what_another_command_wrote_is_left_alone(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "compare", "configuration": {}}')
    code, _, err = run("--weights", shipped_weights(True), "--output", tmp_path, *SMALL)
    assert code == 1
    assert "holds the results of compare, not of submit" in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_code_of_ones_own_goes_into_the_plugin(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(tiny.FILE)
    regions = ["--regions", "V1=first", "V2=first", "V4=act", "IT=second"]
    code, out, _ = run("--model", f"{tmp_path / 'nets.py'}:net", "--output", tmp_path / "out", "--neural-only", *regions)
    assert code == 0
    assert "your code goes into the plugin and becomes public with it: nets.py" in out
    assert "draft" not in out
    (archive,) = (tmp_path / "out").glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        (name,) = (one for one in opened.namelist() if one.endswith("network_code/nets.py"))
        text = opened.read(name).decode()
    assert f"from brainscore_vision.models.{archive.stem}.cnnf_brain.images import Preprocessing" in text


def test_behaviour_needs_imagenets_classes(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    flags = [flag for flag in SMALL if flag != "--neural-only"]
    code, _, err = run("--weights", shipped_weights(True), "--output", tmp_path, *flags)
    assert code == 1
    assert "has 10 classes" in err[0]
    assert "or neural_only for a plugin" in err[0]


def test_regions_without_a_layer_are_left_out_and_told(
    run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(tiny.FILE)
    code, out, err = run("--weights", shipped_weights(False), "--output", tmp_path / "out", *SMALL[:3], "--iterations", 0)
    assert (code, err) == (0, [])
    assert "  left out: V1, V2, for which no layer is known" in out
    (folder,) = (tmp_path / "out").glob("small_CNN_*/")
    (path,) = folder.glob("region_layer_map/*.json")
    assert list(json.loads(path.read_text())) == ["V4", "IT"]
    flags = ["--model", f"{tmp_path / 'nets.py'}:feedback", "--regions", "V1=0", "--output", tmp_path / "other"]
    (tmp_path / "nets.py").write_text(tiny.FILE.replace('made.regions = {"V4": "2", "IT": "4"}', "made.regions = {}"))
    code, _, err = run(*flags, "--neural-only")
    assert code == 1
    assert "name a layer for each in regions" in err[0]
    assert "(V4, IT are enough with neural_only)" in err[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give --weights FILE or --model MODEL, and --output DIR; or --check ZIP"),
        (["--weights", "a.pt"], "and --output DIR; or --check ZIP"),
        (["--output", "a"], "give --weights FILE or --model MODEL"),
        (["--check", "a.zip", "--output", "b"], "--output: --check takes --weights alone beside it"),
        (["--check", "a.zip", "--neural-only"], "--neural-only: --check takes"),
        (["--check", "a.zip", "--device", "cpu"], "--device: --check takes"),
        (["--weights", "a.pt", "--output", "b", "--iterations", "-1"], "--iterations: -1 is not 0 or above"),
        (["--weights", "a.pt", "--output", "b", "--url", "https://c", "--stored", "d", "e"], "--stored and --url: give one"),
        (
            ["--weights", "a.pt", "--output", "b", "--control-url", "https://c"],
            "places of --control FILE, which is not given",
        ),
        (["--weights", "a.pt", "--output", "b", "--control", "c.pt", "--iterations", "0"], "--control: with --iterations 0"),
        (["--weights", "a.pt", "--output", "b", "--regions", "V4"], "'V4': expected REGION=LAYER"),
        (["--weights", "a.pt", "--output", "b", "--time-bins", "70"], "'70': expected START-END in ms"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], argv: Any, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        submit.main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_zip_that_is_not_ready(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    """Rules are checked one by one; what cannot be run is said."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("root/models/my-model/metadata.yml", "")
    code, out, err = run("--check", path)
    assert code == 1
    assert "FAIL  No metadata.yml or metadata.yaml: Brain-Score makes them itself: root/models/my-model/metadata.yml" in out
    assert "FAIL  No identifier has a hyphen: my-model" in out
    assert "  ok  The ZIP is at most 50 MB" in out
    assert "-  memory and time that the real benchmarks will take: not run, since The plugin" in out
    assert len(err) == 1
    assert err[0].startswith(f"error: {path} is not ready to be submitted: ")


def test_what_is_no_zip(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"nothing")
    code, _, err = run("--check", tmp_path / "a.zip")
    assert code == 1
    assert "cannot be read as a ZIP" in err[0]
    code, _, err = run("--check", tmp_path / "b.zip")
    assert (code, err) == (1, [f"error: {tmp_path / 'b.zip'}: no such file"])


def test_without_brainscore_vision(
    run: Callable[..., tuple[int, str, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("cnnf_brain.brainscore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "brainscore_vision.model_helpers.activations.pytorch", None)
    code, _, err = run("--weights", shipped_weights(True), "--output", tmp_path, *SMALL)
    assert code == 1
    assert "pip install 'cnnf-brain[brainscore]'" in err[0]


@pytest.mark.parametrize(
    ("failed", "not_run", "draft", "code", "said"),
    [
        ([], [], False, 0, "ready: a.zip"),
        ([], [], True, 3, "draft: a.zip names no place to load its weights from; everything else is ok"),
        ([], ["the address"], True, 4, "error: a.zip is not checked to the end; not run: the address"),
        (["a rule"], ["the address"], True, 1, "error: a.zip is not ready to be submitted: a rule"),
    ],
)
def test_the_last_word_and_the_exit_code(
    capsys: pytest.CaptureFixture[str], failed: Any, not_run: Any, draft: bool, code: int, said: str
) -> None:
    assert submit.outcome(Path("a.zip"), failed, not_run, draft) == code
    assert "".join(capsys.readouterr()).strip() == said


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ([], 3, "a draft, it names none: upload the weights"),
        (["--url", f"{CLOSED}/small.safetensors"], 4, f"not run, {CLOSED}/small.safetensors was not reached"),
    ],
    ids=["draft", "not reached"],
)
def test_a_draft_and_an_address_that_is_not_reached(
    run: Callable[..., tuple[int, str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    code: int,
    said: str,
) -> None:
    """The stage of the weights is run here; the others stand as if they had been run, and are in the tests of rehearsals."""
    from cnnf_brain.brainscore import rehearsal, worker

    def stages(scratch: Any, task: Any, tell: Any) -> Iterator[Any]:
        yield from worker.weights(worker.Rehearsal(json.loads(json.dumps(task)), scratch))
        yield from (rehearsal.Finding(text, rehearsal.OK) for text in list(rehearsal.STAGES.values())[1:])

    monkeypatch.setattr(rehearsal, "run", stages)
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))
    flags = ["--weights", shipped_weights(False), "--output", tmp_path / "out", *SMALL[:3], "--regions", *CNN_REGIONS]
    assert run(*flags, *place)[0] == 0
    (archive,) = (tmp_path / "out").glob("*.zip")
    ended, out, _ = run("--check", archive)
    assert (ended, said in out) == (code, True), out
    assert ", 0 failed, 1 " in out


@pytest.mark.slow
def test_code_of_ones_own_is_ready(run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path) -> None:
    """Checked from the command line to its end."""
    (tmp_path / "nets.py").write_text("import beside\n" + tiny.FILE)
    (tmp_path / "beside.py").write_text("from cnnf_brain.checks import near\n")
    regions = ["--regions", "V1=0", "V2=2", "V4=2", "IT=4"]
    run("--model", f"{tmp_path / 'nets.py'}:feedback", "--output", tmp_path / "own", "--neural-only", *regions)
    (archive,) = (tmp_path / "own").glob("feedback_CNNF_*.zip")
    ended, out, _ = run("--check", archive)
    assert (ended, out.splitlines()[-1]) == (0, f"ready: {archive}"), out
    assert "the plugin's code is run now, " in out


@pytest.mark.slow
def test_behaviour_from_the_1000_logits(
    run: Callable[..., tuple[int, str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AlexNet of random weights, written, loaded as a plugin, and asked for labels and for a region's layer."""
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet

    torch.manual_seed(0)
    weights = tmp_path / "alexnet.safetensors"
    state = {name: tensor.half().contiguous() for name, tensor in sequential("alexnet", 1000).state_dict().items()}
    safetensors.torch.save_file(state, weights)
    settings = ["--step-size", 0.1, "--match-norm", "--iterations", 1, "--image-size", 64]
    code, _, err = run("--weights", weights, "--output", tmp_path / "out", "--model", "alexnet", *settings)
    assert (code, err) == (0, [])

    from cnnf_brain.brainscore import load_plugin
    from cnnf_brain.brainscore.check import read_submission
    from cnnf_brain.brainscore.commitment import Identity

    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))
    (archive,) = (tmp_path / "out").glob("alexnet_CNNF_*.zip")
    content = read_submission(archive).identity
    identity = Identity.from_dict(content)
    identity.weights.local.symlink_to(weights)
    model = load_plugin(content, archive.stem)

    network = identity.load(str(weights))  # type: ignore[arg-type]
    Image.new("RGB", (80, 80), (200, 30, 90)).save(tmp_path / "red.png")
    with torch.inference_mode():
        logits = network.module(network.preprocessing(Image.open(tmp_path / "red.png"))[None])
    stimuli = StimulusSet({"stimulus_id": ["red"]})
    stimuli.stimulus_paths = {"red": tmp_path / "red.png"}
    stimuli.identifier = f"{tmp_path.parent.name}.{tmp_path.name}"
    model.start_task("label", "imagenet")
    assert model.look_at(stimuli)["logit"].values.tolist() == logits.argmax(dim=1).tolist()
    model.start_recording("IT", time_bins=[(70, 170)])
    assert model.look_at(stimuli).sizes["neuroid"] == 256  # 1 x 1 maps of features.12
    weights.unlink()  # 122 MB that pytest would keep
