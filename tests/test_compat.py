"""Every override and patch of TRL, transformers and vLLM fits the installed releases, and stands in the table."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

import grpo_math
from grpo_math.trainer.compat import PATCHES

SOURCE = Path(grpo_math.__file__).parent
UPSTREAM = ("accelerate", "peft", "transformers", "trl", "vllm")


def find(path: str):
    """The object that a dotted path names."""
    words = path.split(".")
    for place in range(len(words), 0, -1):
        try:
            found = importlib.import_module(".".join(words[:place]))
        except ModuleNotFoundError:
            continue
        for word in words[place:]:
            found = getattr(found, word)
        return found
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.target.split(".")[-1] for patch in PATCHES])
def test_the_installed_releases_have_what_a_patch_relies_on(patch):
    told = f"{patch.target} is not what {patch.place} relies on ({patch.why}): adapt it, or drop it where {patch.until}"
    for line in patch.relies_on:
        place, _, text = line.partition(": ")
        source = " ".join(inspect.getsource(find(place)).split())
        assert " ".join(text.split()) in source, f"{place} no longer has {text!r}: {told}"
    if patch.target.endswith(".LLM") and importlib.util.find_spec("vllm") is None:
        pytest.skip(f"{patch.target}: vLLM is not installed")
    if patch.target.endswith("._llm_weights_sleeping"):  # which only instances have
        return
    try:
        target = find(patch.target)
    except (AttributeError, ModuleNotFoundError):
        pytest.fail(told)
    if patch.signature is not None:
        assert str(inspect.signature(target)) == patch.signature, told


def parsed() -> dict[str, ast.Module]:
    return {str(file.relative_to(SOURCE)): ast.parse(file.read_text()) for file in SOURCE.rglob("*.py")}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Name in the module -> the upstream package it is imported from."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UPSTREAM:
            names |= {alias.asname or alias.name: node.module.split(".")[0] for alias in node.names}
        if isinstance(node, ast.Import):
            known = [alias for alias in node.names if alias.name.split(".")[0] in UPSTREAM]
            names |= {(alias.asname or alias.name).split(".")[0]: alias.name.split(".")[0] for alias in known}
    return names


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def overrides(tree: ast.Module) -> list[str]:
    """Private methods of classes that have an upstream base."""
    upstream = imported_names(tree)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ours = [node for node in classes if any(isinstance(base, ast.Name) and base.id in upstream for base in node.bases)]
    return [
        part.name for node in ours for part in node.body if isinstance(part, ast.FunctionDef) and private(part.name)
    ]


def replacements(tree: ast.Module) -> list[str]:
    """Attributes that are assigned to upstream modules and classes, methods that are replaced on their instances, and
    private attributes set on anything but `self`."""
    import transformers

    classes = (transformers.GenerationMixin, transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)
    methods = {
        name for one in classes for name in dir(one) if not name.startswith("__") and callable(getattr(one, name, None))
    }
    upstream, found = imported_names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            found.append(ast.unparse(node))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            continue
        for target in (part for one in targets for part in ast.walk(one) if isinstance(part, ast.Attribute)):
            root = target
            while isinstance(root, ast.Attribute):
                root = root.value
            name = root.id if isinstance(root, ast.Name) else ""
            if name in upstream or (name not in ("self", "sys") and (private(target.attr) or target.attr in methods)):
                found.append(target.attr)
    return found


def test_there_are_no_others():
    known = {(patch.place, patch.target.split(".")[-1]) for patch in PATCHES}
    found = {(place, name) for place, tree in parsed().items() for name in overrides(tree) + replacements(tree)}
    assert found - known == set(), "overrides and patches that are not in trainer/compat.py"
    assert known - found == set(), "entries of trainer/compat.py without an override or a patch"
    assert len(PATCHES) <= 10
