"""What the command lines share: flags that follow from a record, numbers within limits, exit codes, ``cnnf-brain``."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cnnf_brain import cli
from cnnf_brain.checks import ModelError
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.types import option


@dataclass(frozen=True)
class Settings:
    """A field of every kind that has a flag, and one without."""

    count: int = option(2, "how many", least=0)
    rate: float = option(0.5, "how fast, 1 is 100 % of the limit", above=0, most=1)
    where: str = option("here", "the place", metavar="PLACE", flag="at-place")
    kind: str = option("a", "the kind", choices=("a", "b"))
    quick: bool = option(False, "labelled quick")
    limit: int | None = option(None, "at most so many", above=0)
    seeds: tuple[int, ...] = option((0, 1), "seeds", least=0)
    share: float = option(1.0, "share", least=0, most=1)
    names: tuple[str, ...] = option((), "names")
    pair: tuple[float, float] | None = option(None, "two numbers")
    unseen: str = "no flag"


def parser(**how: Any) -> argparse.ArgumentParser:
    """A parser with the flags of Settings."""
    made = argparse.ArgumentParser(prog="test")
    cli.add_flags(made, Settings, **how)
    return made


def given(*words: str) -> dict[str, Any]:
    """What of Settings the words give."""
    return cli.given(parser().parse_args(words), Settings)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--count 0", {"count": 0}),
        ("--rate 1", {"rate": 1.0}),
        ("--at-place there", {"where": "there"}),
        ("--kind b", {"kind": "b"}),
        ("--quick", {"quick": True}),
        ("--no-quick", {"quick": False}),
        ("--limit 3", {"limit": 3}),
        ("--seeds 4", {"seeds": (4,)}),
        ("--seeds 4 5 6", {"seeds": (4, 5, 6)}),
        ("--pair 1 2.5", {"pair": (1.0, 2.5)}),
        ("--count 1 --kind a", {"count": 1, "kind": "a"}),
    ],
)
def test_what_was_given_makes_the_record(words: str, expected: Any) -> None:
    found = given(*words.split())
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in expected.items()}
    record = Settings(**found)
    assert all(getattr(record, name) == value for name, value in expected.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count -1", "--count: -1 is not 0 or above"),
        ("--count 1.5", "--count: invalid int value: '1.5'"),
        ("--rate 0", "--rate: 0 is not above 0"),
        ("--rate nan", "--rate: nan is not above 0"),
        ("--rate 1.01", "--rate: 1.01 is not 1 or below"),
        ("--rate x", "--rate: invalid float value: 'x'"),
        ("--kind c", "--kind: invalid choice: 'c'"),
        ("--limit 0", "--limit: 0 is not above 0"),
        ("--seeds", "--seeds: expected at least one argument"),
        ("--seeds 1 -1", "--seeds: -1 is not 0 or above"),
        ("--share 1.5", "--share: 1.5 is not in [0, 1]"),
        ("--share nan", "--share: nan is not in [0, 1]"),
        ("--pair 1", "--pair: expected 2 arguments"),
        ("--pair 1 inf", "--pair: inf is not finite"),
        ("--pair nan 1", "--pair: nan is not finite"),
        ("--unseen x", "unrecognized arguments: --unseen x"),
    ],
)
def test_values_out_of_range_are_usage_errors(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        given(*words.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_whole_number_beyond_floating_point_is_compared_too() -> None:
    assert given("--count", str(10**400)) == {"count": 10**400}


def help_of(made: argparse.ArgumentParser) -> str:
    """The parser's help in one line."""
    return " ".join(made.format_help().split())


def test_the_help_states_defaults() -> None:
    text = help_of(parser())
    for part in (
        "--count COUNT how many (default: 2)",
        "1 is 100 % of the limit (default: 0.5)",
        "--at-place PLACE the place (default: here)",
        "--kind {a,b} the kind (default: a)",
        "--quick, --no-quick labelled quick (default: no)",
        "at most so many --seeds",
        "seeds (default: 0 1)",
        "names --pair",
    ):
        assert part in text


def test_only_some_flags_and_other_defaults() -> None:
    made = parser(only=["count", "kind"], defaults={"count": "that of the card", "kind": "b"})
    text = help_of(made)
    assert "how many (default: that of the card)" in text
    assert "the kind (default: b)" in text
    assert "--rate" not in text
    assert cli.given(made.parse_args([]), Settings) == {}  # a default in words decides nothing


def test_flags_of_records_can_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    cli.refuse(made, made.parse_args(["--quick"]), [Settings], "is for the other", but=["quick"])
    with pytest.raises(SystemExit) as stopped:
        cli.refuse(made, made.parse_args(["--at-place", "x"]), [FeedbackSettings, Settings], "is for the other")
    assert stopped.value.code == 2
    assert "error: --at-place is for the other" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuont", "unseen"])
def test_only_knows_its_record(name: str) -> None:
    with pytest.raises(ValueError, match=f"option '{name}' is not known in Settings"):
        parser(only=[name])


def test_the_flags_of_feedback_follow_from_its_settings() -> None:
    made = argparse.ArgumentParser()
    cli.add_flags(made, FeedbackSettings)
    words = "--iterations 4 --step-size 0.1 --match-norm --no-match-layers --ada-relu printed --target features.4"
    found = FeedbackSettings(**cli.given(made.parse_args(words.split()), FeedbackSettings))
    assert found == FeedbackSettings(4, "features.4", 0.1, match_norm=True, match_layers=False, ada_relu="printed")


def failing(error: BaseException) -> Any:
    """Work that ends with ``error``."""

    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code_is_that_of_the_work(code: int) -> None:
    assert cli.run(lambda: code) == code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("steps is 0"), 1, "error: steps is 0\n"),
        (FileNotFoundError("no file a.nc"), 1, "error: no file a.nc\n"),
        (ModuleNotFoundError("needs captum"), 1, "error: needs captum\n"),
        (OSError(), 1, "error: OSError\n"),
        (ValueError("two\nlines"), 1, "error: two lines\n"),
        (ModelError("net cannot be run"), 1, "error: net cannot be run\n"),
        (MemoryError(), 1, "error: too little memory; take smaller batches or images (MemoryError)\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from what is finished\n"),
    ],
)
def test_an_error_of_the_users_world_is_one_line(
    error: Any, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(failing(error)) == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 80 bytes", "too little memory"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "too little memory"),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "a process that loads images was ended"),
        ("CUDA error: device-side assert triggered", "the device failed"),
        (
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
            "another process of this run was lost",
        ),
    ],
)
def test_what_libraries_say_of_memory_devices_and_processes(
    said: str, means: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(failing(RuntimeError(said))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {means}")
    assert said in line


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ZeroDivisionError(), KeyError("x"), AssertionError()])
def test_a_bug_keeps_its_traceback_and_asks_to_be_reported(error: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(error)) == cli.BUG == 70
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith(f"error: {type(error).__name__}")
    assert "please report it" in last


def test_debug_shows_the_traceback_of_any_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(ValueError("steps is 0")), debug=True) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "error: steps is 0")
    assert cli.Parser().parse_args([]).debug is False
    assert cli.Parser().parse_args(["--debug"]).debug is True


def test_leaving_is_no_error() -> None:
    with pytest.raises(SystemExit):
        cli.run(failing(SystemExit(2)))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_its_help(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    help_ = capsys.readouterr().out
    assert help_.startswith("usage: ")
    assert "--debug" in help_


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_gets_its_words_and_gives_its_exit_code(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = importlib.import_module(f"cnnf_brain.{command}")
    module = importlib.import_module(f"cnnf_brain.{command}.__main__") if hasattr(folder, "__path__") else folder
    monkeypatch.setattr(module, "main", lambda words: 3 if words == ["--one", "two"] else 0)
    assert cli.main([command, "--one", "two"]) == 3
    monkeypatch.setattr(sys, "argv", ["cnnf-brain", command, "--one", "two"])
    assert cli.main() == 3


@pytest.mark.parametrize(("script", "trainer"), [("mnist", "small"), ("imagenet", "imagenet")])
def test_a_trainer_is_a_command_and_a_script(
    script: str, trainer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", trainer, "--help"])
    usage, manual = capsys.readouterr().out.split("[-h]", 1)
    assert usage == f"usage: cnnf-brain train {trainer} "
    assert f"    python training/{script}.py " in manual
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(Path(__file__).parents[1] / "training" / f"{script}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: python training/{script}.py ")


@pytest.mark.parametrize("words", [[], ["cifar"]])
def test_another_trainer_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words])
    assert stopped.value.code == 2
    assert "usage: cnnf-brain train {small,imagenet}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["pare"], ["--version"]])
def test_another_command_is_a_usage_error(words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: cnnf-brain COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_names_the_commands(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([flag])
    assert stopped.value.code == 0
    assert ", ".join(cli.COMMANDS) in " ".join(capsys.readouterr().out.split())
