"""Validate values with pydantic models. Each problem is one line: `path: expected X, got Y: the fix`."""

import re
import types
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from grpo_math.errors import suggestion

Path = tuple[str, ...]
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


class Part(BaseModel):
    """A mapping of a recipe. `null` means the default, unless the key takes it as a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
    example: ClassVar[str] = ""
    renamed: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None or takes_null(cls, key)}


def takes_null(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is None or field.annotation is Any or type(None) in options(field.annotation)


def options(annotation: Any) -> list[Any]:
    """The members of a union, or the type alone."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return list(get_args(annotation)) if union else [annotation]


def describe(annotation: Any) -> str:
    """A type in words: `a list of integers or null`."""
    return " or ".join(dict.fromkeys(describe_one(option) for option in options(annotation)))


def describe_one(option: Any) -> str:
    kind = get_origin(option) or option
    if kind is Literal:
        return ", ".join(repr(choice) for choice in get_args(option))
    if kind in (list, tuple):
        inner = describe(get_args(option)[0]) if get_args(option) else "values"
        return "a list of " + re.sub(r"an? (number|integer|string)", r"\1s", inner)
    return WORDS.get(kind, "a mapping")


def validated(model: type[Part], given: Any, where: str, problems: list[str]) -> Any:
    """The model of what is right in `given`, or None; what is wrong with it is appended to `problems`.

    `where` is the prefix of its keys in messages: `dataset[1].`.
    """
    if not isinstance(given, dict):
        problems.append(f"{where[:-1]}: expected a mapping such as {model.example}, got {given!r}")
        return None
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = lines_by_path(model, error, given, where)
    order = {str(key): place for place, key in enumerate(given)}
    problems += [found[path] for path in sorted(found, key=lambda path: order.get(path[0], len(order)))]
    try:
        return model.model_validate(without(given, set(found)))
    except ValidationError:
        return None


def lines_by_path(model: type[Part], error: ValidationError, given: dict, where: str) -> dict[Path, str]:
    lines: dict[Path, str] = {}
    for one in error.errors(include_url=False):
        path, owner = path_of(model, one["loc"])
        value: Any = given
        for key in path:
            value = next((inner for name, inner in value.items() if str(name) == key), None)
        line = f"{where}{'.'.join(path)}: {explain(one, owner, path, where, value)}"
        lines.setdefault(path, line)
    return lines


def path_of(model: type[Part], place: tuple) -> tuple[Path, type[BaseModel]]:
    """The keys that lead to an error, without the branches of unions and places in lists, and the model of the last."""
    path: Path = (str(place[0]),)
    owner: type[BaseModel] = model
    for key in place[1:]:
        field = owner.model_fields.get(path[-1])
        kinds = [kind for kind in options(field.annotation) if isinstance(kind, type)] if field else []
        models = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not models or not isinstance(key, str):
            break
        path, owner = (*path, key), models[0]
    return path, owner


def explain(error: Any, owner: type[BaseModel], path: Path, where: str, value: Any) -> str:
    """What is wrong with one value, by pydantic's type of error."""
    key, kind = path[-1], error["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        prefix = where + ".".join([*path[:-1], ""])
        return f"unknown key, {suggestion(key, list(owner.model_fields), prefix, getattr(owner, 'renamed', {}))}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    field = owner.model_fields[key]
    if kind == "missing":
        return f"missing, expected {field.description or describe(field.annotation)}"
    if kind == "finite_number":
        return f"expected a finite number, got {value}"
    if kind == "literal_error":
        choices = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return f"unknown value {error['input']!r}: use one of {choices}"
    if kind.startswith(("greater_than", "less_than")):
        return f"expected {limits(field)}, got {value}"
    example = next((kind.example for kind in options(field.annotation) if hasattr(kind, "example")), "")
    if example:
        return f"expected a mapping such as {example}, got {value!r}"
    return f"expected {describe(field.annotation)}, got {value!r}{hint(field.annotation, value)}"


def limits(field: FieldInfo) -> str:
    known = ((name, getattr(one, name, None)) for one in field.metadata for name in ("ge", "gt", "le", "lt"))
    found = {name: limit for name, limit in known if limit is not None}
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    if "lt" in found:
        return f"a number {'from' if 'ge' in found else 'above'} {low:g} to below {high:.10g}"
    if high is None:
        return f"at least {low:g}" if "ge" in found else f"more than {low:g}"
    return f"a number from {low:g} to {high:g}" if "ge" in found else f"a number above {low:g} and up to {high:g}"


def hint(annotation: Any, value: Any) -> str:
    kinds = [get_origin(option) or option for option in options(annotation)]
    if isinstance(value, str | int | float) and (list in kinds or tuple in kinds):
        return f": write [{value}]"
    text = str in kinds and set(kinds) <= {str, type(None)}
    return f': write "{value}"' if text and isinstance(value, int | float | bool) else ""


def without(given: dict, paths: set[Path]) -> dict:
    """`given` less the keys at these paths."""
    kept = {}
    for key, value in given.items():
        deeper = {path[1:] for path in paths if path[0] == str(key)}
        if () not in deeper:
            kept[key] = without(value, deeper) if deeper and isinstance(value, dict) else value
    return kept
