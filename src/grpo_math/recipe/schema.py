"""Which keys exist and what type each wants, read from source text: nothing heavy is imported.

TRL's and transformers' own keys come from the installed source of GRPOConfig and ModelConfig, so they are always
those of the installed version; a reward's or adapter's parameters come from its `def`.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from grpo_math.errors import UserError, suggestion

KINDS = {"None": type(None), "bool": bool, "int": int, "str": str, "float": float, "list": list, "dict": dict}
Keys = dict[str, str]  # key -> its annotation as source text, "" for any type


def class_keys(path: Path, name: str) -> Keys:
    """The annotated fields of a class, in source order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}


def function_keys(path: Path, name: str) -> Keys | None:
    """The named parameters of a top-level function, or None when the file defines none of that name."""
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return {argument.arg: known_annotation(argument.annotation) for argument in arguments}
    return None


def assigns(path: Path, name: str) -> bool:
    """Whether something in the file is given that name, as an instance is."""
    names = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Name))
    return any(node.id == name and isinstance(node.ctx, ast.Store) for node in names)


def parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not Python ({error.msg})") from None


def known_annotation(annotation: ast.expr | None) -> str:
    """The annotation as source text, or "" (any type) where it is none that `convert` knows."""
    if annotation is None:
        return ""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    plain = names <= KINDS.keys() and not any(isinstance(node, ast.Attribute) for node in ast.walk(annotation))
    return ast.unparse(annotation) if names and plain else ""


@cache
def trl_keys(config: str = "GRPOConfig") -> tuple[Keys, Keys]:
    """The keys of GRPOConfig or SFTConfig (with TrainingArguments), and of ModelConfig."""
    trl, transformers = (package_folder(name) for name in ("trl", "transformers"))
    file = {"GRPOConfig": "grpo_config.py", "SFTConfig": "sft_config.py"}[config]
    trainer = {
        **class_keys(transformers / "training_args.py", "TrainingArguments"),
        **class_keys(trl / "trainer" / "base_config.py", "_BaseConfig"),
        **class_keys(trl / "trainer" / file, config),
    }
    return trainer, class_keys(trl / "trainer" / "model_config.py", "ModelConfig")


def installed_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec else None


def package_folder(name: str) -> Path:
    folder = installed_folder(name)
    if folder is None:
        raise UserError(f"the package {name} is not installed: pip install {name}")
    return folder


def convert(value, annotation: str):
    """`value` as `annotation` wants it; raises TypeError with what is wanted otherwise.

    Types this module does not know (TRL's enums) are taken as text.
    """
    if not annotation:
        return value
    options = union(ast.parse(annotation, mode="eval").body)
    for option in options:
        try:
            return convert_one(value, option)
        except (TypeError, ValueError):
            continue
    wanted = " or ".join(dict.fromkeys(describe(option) for option in options))
    hint = ""
    if isinstance(value, str | int | float) and any(isinstance(option, ast.Subscript) for option in options):
        hint = f", write [{value}]" if "list" in annotation else ""
    elif isinstance(value, int | float | bool) and wanted in ("text", "text or null"):
        hint = f', write "{value}"'
    raise TypeError(f"want {wanted}, got {value!r}{hint}")


def union(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return union(node.left) + union(node.right)
    return [node]


def convert_one(value, option: ast.expr):
    if isinstance(option, ast.Subscript) and ast.unparse(option.value) == "Literal":
        choices = ast.literal_eval(option.slice)
        if value in (choices if isinstance(choices, tuple) else (choices,)):
            return value
        raise TypeError
    name = ast.unparse(option.value if isinstance(option, ast.Subscript) else option)
    if name == "float" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if name == "Any":
        return value
    if not isinstance(value, KINDS.get(name, str)) or (isinstance(value, bool) and name != "bool"):
        raise TypeError
    if name == "list" and isinstance(option, ast.Subscript):
        return [convert(item, ast.unparse(option.slice)) for item in value]
    return value


def describe(option: ast.expr) -> str:
    name = ast.unparse(option)
    words = {"None": "null", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
    if name.startswith(("dict", "Mapping")):
        return "a mapping"
    if name.startswith("list["):
        return f"a list of {describe(option.slice).removeprefix('a ').replace('number', 'numbers')}"
    if name.startswith("Literal"):
        return name.removeprefix("Literal").strip("[]")
    return words.get(name, "text")


def check_keys(given: dict, keys: Keys, where: str, problems: list[str], renamed: dict[str, str] | None = None) -> dict:
    """The values of `given` converted to the types of `keys`; what is wrong is appended to `problems`.

    None is dropped where the key does not take it: null always means the default.
    """
    checked = {}
    for key, value in given.items():
        name = f"{where}{key}"
        if key not in keys:
            problems.append(f"{name}: unknown key, {suggestion(str(key), list(keys), where, renamed or {})}")
        elif value is not None or "None" in keys[key]:
            try:
                checked[key] = convert(value, keys[key])
            except TypeError as error:
                problems.append(f"{name}: {error}")
    return checked


def mapping_of(given: dict, key: str, example: str, problems: list[str]) -> dict:
    """The value of a key of TRL's that may be a mapping or its JSON, and has to be a mapping here; {} without one."""
    value = given.get(key)
    if isinstance(value, str):
        problems.append(f"{key}: want a mapping such as {example}, got {value!r}")
    return value if isinstance(value, dict) else {}
