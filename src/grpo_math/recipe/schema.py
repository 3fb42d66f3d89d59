"""The JSON schema of a recipe, for editors, and the help of its keys, both from the models that validate it."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo, PydanticUndefined
from pydantic.json_schema import GenerateJsonSchema

from grpo_math.data.adapters import ADAPTERS, PARAMETERS
from grpo_math.data.problem import DatasetSpec
from grpo_math.data.prompts import TEMPLATES
from grpo_math.recipe.checking import Part, describe, options
from grpo_math.recipe.entries import entry_model, parameter_types
from grpo_math.recipe.hints import REFUSED
from grpo_math.recipe.parts import TemplateKeys
from grpo_math.recipe.recipe import recipe_keys
from grpo_math.recipe.trl import trl_keys
from grpo_math.rewards.reward import REWARDS, RewardSpec


def main(options: argparse.Namespace) -> None:
    """Print the JSON schema of a recipe."""
    print(json.dumps(json_schema("SFT" if options.sft else "GRPO"), indent=1))


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a recipe of this kind, GRPO or SFT: type, default and one line of help for every key."""
    schema = untitled(recipe_keys(kind))
    dataset = untitled(dataset_keys())
    properties, definitions = schema["properties"], schema["$defs"] | dataset.pop("$defs")
    named = {"anyOf": [{"type": "string", "enum": list(ADAPTERS)}, dataset]}
    held_out = definitions["EvalSpec"]["properties"]["datasets"]
    held_out["anyOf"] = [named, {"type": "array", "items": named}, {"type": "null"}]
    properties["dataset"]["anyOf"] = [dataset, {"type": "array", "items": dataset}]
    template = {"type": "string", "enum": list(TEMPLATES)}
    properties["prompt_template"]["anyOf"] = [template, untitled(TemplateKeys)]
    if kind == "GRPO":
        definitions["Reward"] = untitled(entry_model(RewardSpec, None, "name", "params"))
        entry = {"anyOf": [{"$ref": "#/$defs/Reward"}, {"const": False}, {"type": "null"}]}
        names = dict.fromkeys(REWARDS, entry)
        properties["rewards"] |= {"type": "object", "properties": names, "additionalProperties": entry}
    kept = {key: value for key, value in properties.items() if key not in REFUSED}
    return {"$schema": Untitled.schema_dialect} | schema | {"$defs": definitions, "properties": kept}


class Untitled(GenerateJsonSchema):
    """A schema without titles that repeat the keys' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def untitled(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(schema_generator=Untitled)


def dataset_keys() -> type[Part]:
    """The keys of a dataset, with the own ones of every shipped dataset."""
    own: dict[str, Any] = {}
    for adapter in ADAPTERS.values():
        named = parameter_types(adapter.generate or adapter.parse, "row", "split", "config")
        for key, (kind, default) in named.items():
            own[key] = (kind, Field(None if default is ... else default, description=PARAMETERS[key]))
    return entry_model(DatasetSpec, own, "params", "where")


def key_sections(kind: str) -> dict[str, list[tuple[str, FieldInfo]]]:
    """Every key of a recipe of this kind by its dotted name: ours, the trainer's and the model's."""
    trainer, model = trl_keys(kind)
    fields = recipe_keys(kind).model_fields
    ours = {name: field for name, field in fields.items() if name not in trainer.keys() | model.keys()}
    reward = entry_model(RewardSpec, {}, "name", "params")
    named = {"dataset": dataset_keys(), "prompt_template": TemplateKeys, "rewards": reward}
    return {
        "keys of grpo-math": [*nested_fields(ours, named)],
        f"keys of TRL's {kind}Config": [(name, fields[name]) for name in trainer if name not in REFUSED],
        "keys of TRL's ModelConfig": [(name, fields[name]) for name in model],
    }


def nested_fields(
    fields: dict[str, FieldInfo], named: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """The keys with their parts: `eval.every`. Those of the parts in `named` are not checked by their type."""
    for name, field in fields.items():
        kinds = options(named.get(name, field.annotation))
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not field.annotation:
            yield f"{prefix}{name}", field
        if part:
            inner = f"{prefix}{name}.{'NAME.' if name == 'rewards' else ''}"
            yield from nested_fields(part.model_fields, {}, inner)


def key_line(field: FieldInfo) -> str:
    """What a key means, its type and its default."""
    unset = field.default in (None, PydanticUndefined)
    default = "" if unset else f", default {json.dumps(field.default, default=list)}"
    return f"{(field.description or '').rstrip('.')} ({describe(field.annotation)}{default})".strip()
