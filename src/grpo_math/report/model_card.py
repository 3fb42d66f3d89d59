"""README.md of a trained model: what it is, how good, what it was trained on and how, and how to load it."""

import os
import re
from collections import Counter
from pathlib import Path

import yaml

from grpo_math.data.adapters import ADAPTERS
from grpo_math.data.problem import DatasetSpec
from grpo_math.errors import one_line
from grpo_math.evaluation.statistics import Figure
from grpo_math.models.models import load_tokenizer
from grpo_math.recipe.parts import looks_local
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs.folder import read_rows

FIGURES = ("accuracy", "format_accuracy", "truncated")
QUESTION = "A shop sells 3 pens for 2 dollars. How many dollars do 12 pens cost?"
LOCAL = re.compile(r"(?<!\S)~?(/[^\s/]+){2,}")
PRIVATE = ("output_dir", "vllm_server_host", "vllm_server_base_url")  # a recipe holds no secret


def write_card(recipe: Recipe, folder: Path, results: dict, environment: dict) -> None:
    """Write FOLDER/README.md beside the model, or the adapter, in it."""
    from huggingface_hub import ModelCard, ModelCardData

    rows = evaluations(recipe, results)
    name, base = recipe.output_dir.resolve().name, base_model(recipe)
    adapter = bool(recipe.model.get("use_peft")) or (folder / "adapter_config.json").exists()
    found = [hub_dataset(spec) for spec in recipe.datasets]
    data = ModelCardData(
        base_model=base,
        datasets=sorted({one for one in found if one}) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[method(recipe).lower(), "trl", "grpo-math"],
        model_name=name,
        eval_results=eval_results(recipe, rows.get("after", [])),
    )
    sections = {
        f"# {name}": introduction(recipe, base, adapter),
        "## Results": results_table(recipe, rows),
        "## Training data": training_data(recipe, environment),
        "## Rewards": rewards_table(recipe),
        "## How to load": how_to_load(recipe, adapter),
        "## Recipe": f"```yaml\n{yaml.safe_dump(public(recipe.raw), sort_keys=False, allow_unicode=True)}```",
        "## Versions and hardware": versions(environment),
    }
    text = "\n\n".join(f"{title}\n\n{body}" for title, body in sections.items() if body)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def method(recipe: Recipe) -> str:
    return "SFT" if recipe.sft else "GRPO"


def base_model(recipe: Recipe) -> str | None:
    """The base model's Hub id; None for a local folder."""
    name = recipe.model["model_name_or_path"]
    return None if os.path.isdir(name) else name


def hub_dataset(spec: DatasetSpec) -> str | None:
    path = spec.path or ADAPTERS[spec.name].hub
    local = spec.name is None or path is None or looks_local(path) or Path(path).exists()
    return None if local else path


def introduction(recipe: Recipe, base: str | None, adapter: bool) -> str:
    folder = Path(recipe.model["model_name_or_path"]).resolve()
    origin = (
        f"[{base}](https://huggingface.co/{base})" if base else f"the local model {folder.parent.name}/{folder.name}"
    )
    what = "A LoRA adapter of" if adapter else "A model trained from"
    return f"{what} {origin}, for maths problems, with {method(recipe)} (TRL's {method(recipe)}Trainer, by grpo-math)."


def evaluations(recipe: Recipe, results: dict) -> dict[str, list[dict]]:
    """The rows of eval.jsonl that measure the model before the first step and after the last."""
    rows = [row for row in read_rows(recipe.output_dir / "eval.jsonl") if "weights" not in row]
    steps = {"before": 0, "after": results.get("steps")}
    return {moment: found for moment, step in steps.items() if (found := [row for row in rows if row["step"] == step])}


def eval_results(recipe: Recipe, rows: list[dict]) -> list | None:
    """For the metadata, which the Hub shows beside the model: of the Hub's own datasets."""
    from huggingface_hub import EvalResult

    specs = {spec.title: spec for spec in recipe.eval_datasets}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_dataset(specs[row["dataset"]]),
            dataset_name=public(row["dataset"]),
            dataset_split=specs[row["dataset"]].split,
            metric_type="accuracy",
            metric_value=round(row["accuracy"], 4),
        )
        for row in rows
        if row["dataset"] in specs and hub_dataset(specs[row["dataset"]])
    ] or None


def results_table(recipe: Recipe, rows: dict[str, list[dict]]) -> str:
    """A row a dataset and figure."""
    if not rows:
        return "Not evaluated."
    lines = ["| dataset | problems | samples | | " + " | ".join(rows) + " |", "|---" * (4 + len(rows)) + "|"]
    for place, row in enumerate(next(iter(rows.values()))):
        for name in FIGURES:
            cells = [str(Figure(*(one[place][name + end] for end in ("", "_low", "_high")))) for one in rows.values()]
            known = (public(row["dataset"]), f"{row['problems']:,}", str(row["samples"]), name.replace("_", " "))
            lines.append("| " + " | ".join([*known, *cells]) + " |")
    temperature = recipe.eval.temperature
    how = f"Sampled at temperature {temperature:g}" if temperature else "Greedy decoding"
    length = recipe.eval_completion_length
    return "\n".join(lines) + f"\n\n{how}, up to {length:,} tokens; with 95 % intervals over the problems."


def training_data(recipe: Recipe, environment: dict) -> str:
    lines = []
    for spec in recipe.datasets:
        found = hub_dataset(spec)
        files = "" if found or not spec.path else f", local files: {Path(spec.path).name}"
        lines.append(
            f"- {public(spec.title)}{files}"
            + (f" ([{found}](https://huggingface.co/datasets/{found}))" if found else "")
        )
    mark = environment.get("dataset_fingerprint")
    return "\n".join(lines) + (f"\n\nFingerprint of the problems in their order: `{mark}`." if mark else "")


def rewards_table(recipe: Recipe) -> str:
    kinds = [(spec, public(spec.path or spec.reward_model) or "grpo-math's own") for spec in recipe.rewards]
    lines = [f"| {spec.name} | {spec.weight:g} | {kind} |" for spec, kind in kinds]
    return "\n".join(["| reward | weight | |", "|---|---|---|", *lines]) if lines else ""


def how_to_load(recipe: Recipe, adapter: bool) -> str:
    """Python that runs in the model's folder."""
    model = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = f"from transformers import {model}, AutoTokenizer"
    if adapter:
        imports = f"from peft import {model}\nfrom transformers import AutoTokenizer"
    template = recipe.template
    prompt = template.prompt(QUESTION, load_tokenizer(recipe) if template.chat and template.prefill else None)
    if isinstance(prompt, str):
        inputs = 'tokenizer(prompt, return_tensors="pt")'
    else:
        extra = "".join(
            f", {key}={value!r}" for key, value in (recipe.trainer.get("chat_template_kwargs") or {}).items()
        )
        arguments = f'prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"{extra}'
        inputs = f"tokenizer.apply_chat_template({arguments})"
    stop = f", stop_strings={list(template.stop)!r}, tokenizer=tokenizer" if template.stop else ""
    end = ", eos_token_id=tokenizer.eos_token_id" if recipe.trainer.get("eos_token") else ""
    return f"""The prompt is the one it was trained with; the answer style is `{template.answer_style}`.

```python
{imports}

name = "."  # this folder, or the model's id on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = {model}.from_pretrained(name)
prompt = {prompt!r}
inputs = {inputs}
output = model.generate(**inputs, max_new_tokens={recipe.eval_completion_length}{stop}{end})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def public(value):
    """Of a recipe, what anyone may see: no absolute path of this machine and no address."""
    if isinstance(value, dict):
        return {key: public(one) for key, one in value.items() if key not in PRIVATE}
    if isinstance(value, list):
        return [public(one) for one in value]
    return LOCAL.sub(lambda path: Path(path[0]).name, value) if isinstance(value, str) else value


def versions(environment: dict) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    gpus = ", ".join(f"{count} x {name}" for name, count in Counter(environment.get("gpus", [])).items())
    hardware = gpus or f"{environment.get('cpus')} CPU cores"
    return f"Python {environment.get('python')}, {packages}; on {hardware}."


def push(trainer, folder: Path) -> None:
    """Send the model with its card, where the recipe says `push_to_hub`: transformers would send the whole run folder,
    its log and completions too."""
    from huggingface_hub import HfApi

    if not trainer.args.push_to_hub or not trainer.is_world_process_zero():
        return
    fix = f"the run is finished: upload it with `hf upload {trainer.hub_model_id} {folder}`"
    with one_line(f"push_to_hub: {trainer.hub_model_id} did not take it", fix, (Exception,)):
        HfApi().upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=folder,
            commit_message="End of training",
            revision=trainer.args.hub_revision,
        )
