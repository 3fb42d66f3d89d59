"""The package as a house: rooms that import in one direction, few modules at the top, none of them long."""

import ast
import importlib
import inspect
import subprocess
import sys

from conftest import ROOT

SRC = ROOT / "src" / "grpo_math"
ORDER = (
    "errors grading data rewards recipe runs models generation evaluation trainer checks report "
    "train sft quickstart launch check verbs completion __main__"
).split()
FREE = {"__init__"}  # the public API, imported lazily


def rooms_imported(path):
    """The rooms that a module imports, at any level, with the line of each."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names = [f"grpo_math.{alias.name}" for alias in node.names] if names == ["grpo_math"] else names
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in filter(None, names):
            if name.startswith("grpo_math.") and name != "grpo_math.__version__":
                yield name.split(".")[1], node.lineno


def test_no_room_imports_a_room_to_its_right():
    wrong = []
    for path in SRC.rglob("*.py"):
        room = path.relative_to(SRC).parts[0].removesuffix(".py")
        if room in FREE:
            continue
        for imported, line in rooms_imported(path):
            if ORDER.index(imported) > ORDER.index(room) and imported != "__main__":  # of `python -m grpo_math.train`
                wrong.append(f"{path.relative_to(SRC)}:{line} imports {imported}")
    assert wrong == []


def test_the_house_stays_small():
    assert len(list(SRC.glob("*.py"))) <= 12
    assert 7 <= len(list(SRC.glob("*/__init__.py"))) <= 13
    assert {path.name: count for path in SRC.rglob("*.py") if (count := len(path.read_text().splitlines())) > 350} == {}


def test_training_imports_few_modules():
    count = "import sys, grpo_math.train; print(sum(name.startswith('grpo_math') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 35


def test_what_a_room_exports_is_documented():
    rooms = [importlib.import_module(f"grpo_math.{path.parent.name}") for path in SRC.glob("*/__init__.py")]
    exported = {
        f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in getattr(room, "__all__", ())
    }
    assert [name for name, found in exported.items() if inspect.isroutine(found) and not found.__doc__] == []
