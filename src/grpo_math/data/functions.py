"""Functions that a recipe names: `file.py:function` or `package.module:function`."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

from grpo_math.errors import UserError, nearest, raised


def split_reference(reference: str) -> tuple[str, str]:
    """`file.py:function` or `package.module:function` as its two halves."""
    module, colon, name = reference.rpartition(":")
    if not colon or not module or not name.isidentifier():
        raise UserError(f"{reference!r}: expected file.py:function or package.module:function")
    return module, name


def source_file(module: str) -> Path | None:
    """The Python file of `file.py` or `package.module`; None for a module without one (a built-in, an extension)."""
    if module.endswith(".py"):
        path = Path(os.path.expanduser(module))
        if not path.is_file():
            where = "" if path.is_absolute() else ": paths are relative to the folder where the command runs"
            raise UserError(f"no file {path}{where}")
        return path
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"no module {module!r} is installed (for a file, write {module}.py)")
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def load_function(reference: str) -> Callable:
    """Import the function that `file.py:function` or `package.module:function` names."""
    module, name = split_reference(reference)
    try:
        path = source_file(module) if module.endswith(".py") else None
        if path is None:
            loaded = importlib.import_module(module)
        else:
            sys.path.append(str(path.resolve().parent))  # it may import its neighbours
            own = f"grpo_math_own_{path.stem}"  # never the name of an installed module
            spec = importlib.util.spec_from_file_location(own, path)
            if spec is None or spec.loader is None:  # not for a .py file
                raise ImportError(path)
            loaded = sys.modules[own] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
    except UserError as error:
        raise UserError(f"{reference}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{reference}: importing {module} failed ({raised(error)})") from error
    function = getattr(loaded, name, None)
    if not callable(function):
        near = nearest(name, (key for key, value in vars(loaded).items() if callable(value)), cutoff=0.75)
        fix = f", did you mean {near}?" if near else ""
        raise UserError(f"{reference}: {module} has no function {name!r}{fix}")
    try:
        inspect.signature(function)
    except ValueError:
        raise UserError(f"{reference}: its parameters have no names: wrap it in a Python function") from None
    return function


def parameters(function: Callable) -> dict[str, str]:
    """The named parameters of a function with their annotations as source text ("" without one)."""
    return {
        name: "" if one.annotation is one.empty else inspect.formatannotation(one.annotation)
        for name, one in inspect.signature(function).parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
