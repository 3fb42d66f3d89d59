"""A recipe file, what it extends, and the command line, as one plain mapping. What the keys mean is recipe.py's."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_math.data.adapters import flat
from grpo_math.errors import UserError, nearest, reason_of

TEXTS = ("prompt_template.user", "prompt_template.system", "prompt_template.prefill")  # "Q: {question}" is no YAML here
SECRET = re.compile(  # names of keys; eos_token and pad_token are none
    r"token|(.*[_-])?((api|access|private|secret)[_-]?keys?|passw(or)?ds?|passphrase|secrets?|credentials?|authorization"
    r"|(api|auth|access|bearer|hf|hub|wandb|openai|github)[_-]?tokens?)",
    re.IGNORECASE,
)
BOOL, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of a silent overwrite.

    As in YAML 1.2, `no`, `off`, `yes` and `on` are text (`save_strategy: no`), and 1e-6 is a number.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOL, FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} is given twice, first in line {seen[key_node.value]}: delete one",
                    key_node.start_mark,
                )  # fmt: skip
            seen[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
NUMBER = r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
StrictLoader.add_implicit_resolver(FLOAT, re.compile(NUMBER), list("-+.0123456789"))


def read_yaml(path: Path, kind: type[dict] | type[list] = dict) -> Any:
    """A YAML file that holds one mapping, or one list where that is the `kind`."""
    what = "recipe" if kind is dict else "list"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: no such {what} ({error.strerror}): check its path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: a recipe is a YAML file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({reason_of(error)})") from None
    if not isinstance(content, kind):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        wanted = "`key: value` lines (see recipes/quickstart.yaml)" if kind is dict else "a list, `- name: gsm8k`"
        raise UserError(f"{path}: expected {wanted}, got {found}")
    return content


def read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """A recipe file on top of what it extends, if anything: one recipe, or a list of one and the files whose own keys,
    without what those extend in turn, are laid over it in order."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, through {' -> '.join(str(file) for file in seen)}")
    content = read_yaml(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    names = base if isinstance(base, list) else [base]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: extends: expected a file name or a list of them, got {base!r}")
    first, *further = (extended(path, name) for name in names)
    below = read_recipe(first, (*seen, path.resolve()))
    for file in further:
        below = merge(below, {key: value for key, value in read_yaml(file).items() if key != "extends"})
    return merge(below, content)


def extended(path: Path, name: str) -> Path:
    """The file that a recipe extends: a path from its folder, or the name of a shipped recipe."""
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        try:
            return shipped_recipe(name)  # not a file of that name in the working directory
        except UserError as error:
            raise UserError(f"{path}: extends: {error}") from None
    if not (path.parent / name).is_file():
        raise UserError(f"{path}: extends: no recipe {name}: give its path relative to the folder of this file")
    return path.parent / name


def merge(base: dict, top: dict) -> dict:
    """`top` over `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def dotted(raw: dict) -> Iterator[tuple[str, object]]:
    """The keys as the command line has them, `dataset.path`, with their values."""
    return ((name, value) for name, value in flat(raw) if not (value and isinstance(value, dict)))


def parse_arguments(argv: list[str]) -> tuple[Path | None, dict]:
    """`--config FILE --key value --nested.key value --flag` as the file, if any, and a nested mapping of overrides."""
    given, arguments = {}, list(argv)
    while arguments:
        word = arguments.pop(0)
        if not word.startswith("--"):
            hint = f"did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else "quote a value with spaces"
            raise UserError(f"{word!r}: expected --key value pairs ({hint})")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = arguments.pop(0) if arguments and not arguments[0].startswith("--") else "true"
        given[name] = value
    if "extends" in given:
        raise UserError("--extends: only a recipe file can extend another: write `extends: other.yaml` in it")
    config = given.pop("config", None)
    overrides: dict = {}
    for name, value in given.items():
        try:
            value = value if name in TEXTS else yaml.load(value, StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(f"--{name}: the value is not YAML: quote it") from None
        overrides = merge(overrides, nested(name, value))
    return recipe_path(config) if config else None, overrides


def nested(name: str, value: object) -> dict:
    """`a.b` and a value as {a: {b: value}}."""
    first, dot, rest = name.partition(".")
    return {first: nested(rest, value) if dot else value}


def recipe_path(name: str) -> Path:
    """A recipe file; the name of a shipped recipe, without folder and ending, means that one."""
    path = Path(name)
    return path if path.is_file() or "/" in name or name.endswith((".yaml", ".yml")) else shipped_recipe(name)


def shipped_recipe(name: str) -> Path:
    if (shipped("recipes") / f"{name}.yaml").exists():
        return shipped("recipes") / f"{name}.yaml"
    known = sorted(file.stem for file in shipped("recipes").glob("*.yaml"))
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"give a file, or one of {', '.join(known)}"
    raise UserError(f"{name}: no such recipe: {hint}")


def shipped(name: Literal["recipes", "accelerate_configs", "benchmarks"]) -> Path:
    """The folder of this name: of the installed package, or of the repository it is run from."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parents[1] / name


def without_secrets(content: Any, where: str, found: list[str]) -> Any:
    """The content without the keys that have a value and the name of a secret; `found` gets their dotted names.

    So no later message repeats a secret. true and false are none: `model_init_kwargs: {token: true}` is a login's.
    """
    if isinstance(content, list):
        return [without_secrets(value, f"{where}[{place}]", found) for place, value in enumerate(content)]
    if not isinstance(content, dict):
        return content
    kept = {}
    for key, value in content.items():
        name = f"{where}.{key}" if where else str(key)
        if value is None or isinstance(value, bool) or not SECRET.fullmatch(str(key)):
            kept[key] = without_secrets(value, name, found)
        else:
            found.append(name)
    return kept
