"""What the package declares and carries: its dependencies are the packages that src imports; its recipes have names."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

from grpo_math.errors import UserError
from grpo_math.recipe.recipe import resolve

SRC = ROOT / "src" / "grpo_math"
OPTIONAL = {"reasoning_gym", "trackio", "vllm"}  # imported where a recipe asks for them


def imported() -> set[str]:
    """The top-level packages that src imports anywhere, other than its own and Python's."""
    names = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - {"grpo_math", *sys.stdlib_module_names}


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_dependencies_name_every_package_that_src_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    wanted = {canonical(distributions[name][0]) for name in imported() - OPTIONAL}
    assert set(map(canonical, project["dependencies"])) == wanted
    extras = {canonical(one) for extra in project["optional-dependencies"].values() for one in extra}
    assert set(map(canonical, OPTIONAL)) - extras == set()


def test_a_shipped_recipe_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, problems = resolve(["--config", "gsm8k_qwen2.5_0.5b"])  # which extends another
    assert problems == []
    assert recipe.model["model_name_or_path"].startswith("Qwen/Qwen2.5-0.5B")
    assert recipe.output_dir.name == "gsm8k_qwen2.5_0.5b"
    with pytest.raises(UserError, match="nothing_like_it: no such recipe: give a file, or one of cispo, dapo, "):
        resolve(["--config", "nothing_like_it"])
