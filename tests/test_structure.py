"""The house rules that a program can watch: who imports whom, sizes, docstrings, nothing of one machine in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "cnnf_brain"
MAX_LINES = 420
MAX_MODULES = 116  # of cnnf_brain and training; lower it where modules go, the goal is 65
MAX_CODE = 25_410  # their lines; the goal is 14,700
MAX_COMPLEXITY = 15
COMMANDS = {f"{PACKAGE}/{name}.py" for name in ("cli", "submit", "layers", "status", "train/small", "train/imagenet")}
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.match_case)
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# The last paragraph of CONTRIBUTING.md's map, from the bottom up. A module may import what stands lower than itself, and
# its neighbours on the same level unless they are strangers to each other. A dotted entry stands apart from its package.
LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"types", "checks", "images", "io", "results", "style", "work"}),
    frozenset({"model", "predictivity", "recordings", "datasets"}),
    frozenset({"networks", "identity"}),
    frozenset({"activations", "trainer", "attacks", "scratch"}),
    frozenset({"gram", "brainscore", "report"}),
    frozenset({"compare"}),
    frozenset(
        {
            "compare.__main__",
            "submit",
            "layers",
            "train",
            "cli",
            "robustness",
            "visualize",
            "sweep",
            "status",
            "verify",
            "training",
            "benchmarks",
            "report.readers",
            "report.__main__",
        }
    ),
)
PLACED = frozenset().union(*LEVELS)
STRANGERS = 1
FORBIDDEN = {  # part of the package -> outside libraries that it never meets
    "predictivity": {"torch", "torchvision", "brainscore_vision"},
    "recordings": {"torch", "torchvision"},
}


def sources() -> list[Path]:
    """Every Python file of the package and of the commands beside it."""
    return sorted(path for folder in (PACKAGE, "training", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def part(parts: tuple[str, ...]) -> str | None:
    """The name in LEVELS of a dotted name or path, its longest beginning that stands there.

    ``cnnf_brain.model.layers`` is ``model``, ``cnnf_brain.report.readers`` is ``report.readers``, ``training.mnist`` is
    ``training``; ``""`` for the package itself; None for what is not of this project.
    """
    if parts[0] == PACKAGE:
        names = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
        return next((name for name in names if name in PLACED), names[-1] if names else "")
    return parts[0] if parts[0] in ("training", "benchmarks") else None


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and dotted name of all that is imported, anywhere in a file of ``package``; relative names resolved.

    For ``from cnnf_brain import x`` the name is ``cnnf_brain.x`` where such a module exists, else ``cnnf_brain``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                module = ROOT.joinpath(*base, alias.name)
                yield node.lineno, (*base, alias.name) if module.is_dir() or module.with_suffix(".py").exists() else base


def level(name: str) -> int:
    """The level of a part of the project; the package's own __init__ stands with the commands."""
    numbers = {member: number for number, names in enumerate(LEVELS) for member in names}
    return (numbers | {"": len(LEVELS) - 1})[name]


def offences(code: str, path: tuple[str, ...]) -> list[str]:
    """What the file at ``path`` (parts without suffix) imports and must not."""
    importer = part(path[:-1] if path[-1] == "__init__" else path)
    assert importer is not None
    found = []
    for line, name in imports(ast.parse(code), path[:-1]):
        imported = part(name)
        where = f"{'/'.join(path)}.py:{line} ({importer or PACKAGE}) imports {'.'.join(name)}"
        if imported is None:
            if name[0] in FORBIDDEN.get(importer, ()):
                found.append(f"{where}, which {importer} never meets")
        elif imported != importer:
            below = level(importer) - level(imported)
            if below < 0 or (below == 0 and level(importer) == STRANGERS):
                found.append(f"{where}: {'upwards' if below < 0 else 'strangers to each other'}")
    return found


def test_the_map_says_the_same() -> None:
    paragraph = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("Who may import whom")[1].split("\n\n")[0]
    told = [frozenset(name.strip("/") for name in re.findall(r"`([^`]+)`", names)) for names in paragraph.split("→")]
    assert tuple(reversed(told)) == LEVELS


def test_every_module_stands_in_the_map() -> None:
    placed = PLACED | {""}
    modules = [path.relative_to(ROOT).with_suffix("").parts for path in sources()]
    unplaced = sorted(
        "/".join(module) for module in modules if part(module[:-1] if module[-1] == "__init__" else module) not in placed
    )
    assert not unplaced, f"not in LEVELS here nor in the map of CONTRIBUTING.md: {unplaced}"


def test_imports_go_downwards_only() -> None:
    found = [
        offence
        for path in sources()
        for offence in offences(path.read_text(encoding="utf-8"), path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("cnnf_brain/io", "from .model import layers", "upwards"),
        ("cnnf_brain/model/layers", "from cnnf_brain.predictivity import pls", "strangers"),
        ("cnnf_brain/model/layers", "from ..recordings.record import x", "strangers"),
        ("cnnf_brain/model/layers", "def f():\n    import cnnf_brain.compare", "upwards"),
        ("cnnf_brain/model/layers", "from cnnf_brain import vgg16", "upwards"),
        ("cnnf_brain/predictivity/__init__", "from .. import trainer", "upwards"),
        ("cnnf_brain/predictivity/pls", "from torch import nn", "never meets"),
        ("cnnf_brain/gram", "import training.mnist", "upwards"),
        ("cnnf_brain/report/page", "from cnnf_brain.report import readers", "upwards"),
        ("cnnf_brain/report/page", "from .readers import read", "upwards"),
        ("cnnf_brain/compare/words", "from cnnf_brain.report import page, readers", "upwards"),
    ],
)
def test_a_forbidden_import_is_found(path: str, code: str, reason: str) -> None:
    (offence,) = offences(code, tuple(path.split("/")))
    assert reason in offence
    assert path in offence


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cnnf_brain/model/layers", "from .. import types\nfrom . import feedback\nfrom cnnf_brain.checks import unknown"),
        ("cnnf_brain/report/readers", "from cnnf_brain.report import page\nfrom cnnf_brain import evaluate"),
        ("cnnf_brain/report/page", "from cnnf_brain.report.runs import Run"),
        ("cnnf_brain/robustness/report", "from cnnf_brain.report import readers"),
        ("cnnf_brain/gram", "from .activations import extract\nfrom .networks import Network"),
        ("cnnf_brain/__init__", "from .model.nets import small_net"),
        ("training/mnist", "import cnnf_brain\nfrom cnnf_brain.trainer import loop"),
    ],
)
def test_an_allowed_import_passes(path: str, code: str) -> None:
    assert offences(code, tuple(path.split("/"))) == []


def test_hooks_are_known_to_one_module() -> None:
    hook = re.compile(r"\bregister_\w*hook\b")
    users = [path.relative_to(ROOT).as_posix() for path in sources() if hook.search(path.read_text(encoding="utf-8"))]
    assert set(users) <= {f"{PACKAGE}/activations.py"}


def test_files_fit_the_eye() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / PACKAGE).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


def complexity(function: ast.AST) -> int:
    """One more than the branches of a function: statements, conditional expressions, ``and`` and ``or``, comprehensions and
    their conditions. Functions and classes inside count for themselves."""
    return 1 + sum(branches(child) for child in ast.iter_child_nodes(function))


def branches(node: ast.AST) -> int:
    """Those of a node and of all below it."""
    if isinstance(node, NESTED):
        return 0
    match node:
        case ast.BoolOp(values=values):
            own = len(values) - 1
        case ast.comprehension(ifs=conditions):
            own = 1 + len(conditions)
        case _:
            own = int(isinstance(node, BRANCHES))
    return own + sum(branches(child) for child in ast.iter_child_nodes(node))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(x): return x", 1),
        ("def f(x): return 1 if x and x > 1 or x < 0 else 2", 4),
        ("def f(x): return [a for b in x if b if b > 1 for a in b]", 5),
        ("def f(x):\n for a in x:\n  while a:\n   assert a\n  else:\n   pass", 4),
        ("def f(x):\n try:\n  pass\n except ValueError:\n  pass\n except OSError:\n  pass", 3),
        ("def f(x):\n match x:\n  case 1:\n   pass\n  case _:\n   pass", 3),
        ("def f(x):\n def g(y): return y or y\n return lambda z: z or z", 2),
    ],
)
def test_complexity_by_hand(code: str, expected: int) -> None:
    (function,) = ast.parse(code).body
    assert complexity(function) == expected


def library() -> dict[str, str]:
    """The text of every Python file of the package and of training/."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in (PACKAGE, "training")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def test_no_function_is_too_complex() -> None:
    found = {
        f"{name}:{node.lineno} {node.name}": complexity(node)
        for name, code in library().items()
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {where: number for where, number in found.items() if number > MAX_COMPLEXITY} == {}


def test_the_house_stays_small() -> None:
    assert len(library()) <= MAX_MODULES
    assert sum(len(code.splitlines()) for code in library().values()) <= MAX_CODE


def test_the_formatter_is_never_switched_off(tracked: dict[str, bytes]) -> None:
    assert not found_in({name: text for name, text in tracked.items() if name.endswith(".py")}, r"fmt: " + r"(skip|off)")


OPENS = {
    "open",
    "safe_open",
    "load_file",
    "save_file",
    "loadtxt",
    "fromfile",
    "memmap",
    "tofile",
    "loadmat",
    "ZipFile",
    "TarFile",
}
OPENS |= {"read_text", "read_bytes", "write_text", "write_bytes"}  # of a path
OPENS |= {"read_csv", "to_csv", "open_dataset", "to_netcdf", "np.load", "np.save", "np.savez", "np.savez_compressed"}
OPENS |= {"torch.load", "torch.save"}
NAMESAKES = {"read_text", "read_bytes", "write_text", "read_csv"}  # of functions of ours, called by their bare names
TEXTS_OF_OURS = "a file of this package, as it was installed"
SCRATCH = "a scratch folder that the check of a plugin has made"
OPENED = "of a file that io.open_file or write_whole has opened"
ELSEWHERE = {  # than io.py: file of the package -> call -> why
    "brainscore/check.py": {
        "ZipFile": "has errors and limits of its own: it is a stranger's",
        "open": "a member of that ZIP",
        "read_text": "Brain-Score's own files",
        "write_bytes": SCRATCH,
    },
    "brainscore/plugin.py": {
        "read_text": TEXTS_OF_OURS,
        "write_text": "into the folder of results.results",
        "ZipFile": "into the folder of results.results",
    },
    "brainscore/rehearsal.py": {"open": SCRATCH, "write_text": SCRATCH},
    "brainscore/toy.py": {"write_bytes": SCRATCH},
    "brainscore/vendor.py": {"read_text": TEXTS_OF_OURS},
    "brainscore/worker.py": {"open": SCRATCH, "read_text": SCRATCH},
    "checks.py": {"read_text": "what the system says of its memory"},
    "datasets/image_batches.py": {"open": "PIL, of bytes that were read"},
    "datasets/image_index.py": {
        "loadmat": "each of its errors is caught and told with the file's name",
        "np.load": OPENED,
        "np.savez": OPENED,
        "open": "shards that were read as a whole before (tarfile, os.open); images in them are read by pread",
    },
    "datasets/mnist.py": {"open": "gzip of bytes that were read"},
    "gram.py": {"np.load": OPENED, "np.savez": OPENED},
    "identity.py": {"read_text": "Python files as Python reads them; the error names them"},
    "model/weights.py": {
        "safe_open": "within io.reading",
        "load_file": "each of its errors is caught and told with the file's name",
        "torch.load": "as load_file, and as tensors alone",
    },
    "recordings/v4_compact.py": {"read_text": TEXTS_OF_OURS, "ZipFile": OPENED},
    "report/page.py": {"read_text": TEXTS_OF_OURS},
    "results.py": {"read_text": "what the system says of its processor"},
    "robustness/__main__.py": {"to_csv": "to the terminal"},
    "robustness/cells.py": {"np.load": OPENED, "np.savez_compressed": "to a path of io.atomic_path"},
    "scratch.py": {
        "fromfile": "rows whose sums were compared",
        "open": "rows are added by the one process that holds the lock",
    },
    "trainer/checkpoint.py": {
        "safe_open": "io.open_file has looked at the file before",
        "torch.save": "to bytes (safetensors)",
    },
    "trainer/metrics.py": {"open": "a log grows line by line, and its reader passes over a line that was cut"},
    "types.py": {"open": "PIL, of bytes that were read"},
    "visualize/view.py": {"read_text": TEXTS_OF_OURS},
}


def opens(code: str) -> set[str]:
    """The calls of OPENS in a file."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                found |= {name} & (OPENS - NAMESAKES)
            case ast.Call(func=ast.Attribute(value=owner, attr=name)):
                found |= {name, f"{ast.unparse(owner).rpartition('.')[2]}.{name}"} & OPENS
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("with open(p) as f: pass", {"open"}),
        ("Path(p).open('rb')", {"open"}),
        ("p.parent.read_text()", {"read_text"}),
        ("read_text(p)", set()),
        ("numpy.fromfile(p)", {"fromfile"}),
        ("torch.load(p)", {"torch.load"}),
        ("json.loads(p); small.load(p)", set()),
    ],
)
def test_an_opened_file_is_found(code: str, expected: set[str]) -> None:
    assert opens(code) == expected


def test_files_are_opened_in_one_place() -> None:
    """By io.open_file, read_text, write_whole, ..., so that pipes are refused and errors name the file; or for a reason."""
    found = {name.removeprefix(f"{PACKAGE}/"): opens(code) for name, code in library().items()}
    assert {name: calls for name, calls in found.items() if calls and name != "io.py"} == {
        name: set(reasons) for name, reasons in ELSEWHERE.items()
    }


def is_command(name: str) -> bool:
    """Whether a file of the library is a command line, which alone knows flags."""
    return name.endswith("/__main__.py") or name in COMMANDS or name.startswith("training/")


def test_only_commands_read_command_lines() -> None:
    readers = [name for name, code in library().items() if "argparse" in {i[0] for _, i in imports(ast.parse(code), ())}]
    assert [name for name in readers if not is_command(name)] == []


def test_errors_of_the_library_speak_of_arguments() -> None:
    flag = re.compile(r"(?<![\w-])--[a-z]")
    found = [
        f"{name}:{text.lineno} {text.value}"
        for name, code in library().items()
        if not is_command(name)
        for error in ast.walk(ast.parse(code))
        if isinstance(error, ast.Raise)
        for text in ast.walk(error)
        if isinstance(text, ast.Constant)
        and isinstance(text.value, str)
        and flag.search(text.value)
        and "tar --" not in text.value
    ]
    assert not found, "\n".join(found)


def undocumented(code: str) -> list[str]:
    """Public functions and classes of a module without a docstring."""
    return [
        f"{node.name} (line {node.lineno})"
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def test_public_names_have_docstrings() -> None:
    assert undocumented('def f():\n    pass\nclass A:\n    "b"\ndef _g():\n    pass') == ["f (line 1)"]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
        for name in undocumented(path.read_text(encoding="utf-8"))
    ]
    assert not missing, "\n".join(missing)


@pytest.fixture(scope="module")
def tracked() -> dict[str, bytes]:
    """The content of every file that git tracks."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout: which files are tracked is not known otherwise")
    names = [name for name in listed.decode().split("\0") if name]
    assert "pyproject.toml" in names
    return {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


def found_in(files: dict[str, bytes], pattern: str) -> list[str]:
    """``file: match`` for the first match of ``pattern`` in each file."""
    search = re.compile(pattern.encode()).search
    return [f"{name}: {match[0].decode()}" for name, text in files.items() if (match := search(text))]


def test_no_absolute_path_of_one_machine_is_tracked(tracked: dict[str, bytes]) -> None:
    assert found_in({"a": b"see /" + b"work/main"}, r"/(work|root|home)/[a-z.]") == ["a: /" + "work/m"]
    assert not found_in(tracked, r"/(work|root|home)/[a-z.]")


def test_no_registry_host_is_tracked(tracked: dict[str, bytes]) -> None:
    hosts = [r"pypi" + r"\.org", r"python" + r"hosted", r"deb\.de" + r"bian", r"download\.py" + r"torch"]
    assert not found_in(tracked, "|".join(hosts))
