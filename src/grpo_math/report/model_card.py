"""README.md of a trained model: what it is, its results, its training data and rewards, and how to load it."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grpo_math.data import ADAPTERS, DatasetSpec, PromptTemplate, titles
from grpo_math.errors import one_line
from grpo_math.evaluation.statistics import Figure
from grpo_math.recipe.parts import is_hub_id
from grpo_math.recipe.recipe import Recipe, trainer_dtype
from grpo_math.runs.folder import read_rows

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from transformers import Trainer

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
FIGURES = ("accuracy", "format_accuracy", "truncated")
QUESTION = "A shop sells 3 pens for 2 dollars. How many dollars do 12 pens cost?"
LOCAL = re.compile(r"(?<!\S)~?(/[^\s/]+){2,}")
PRIVATE = ("output_dir", "vllm_server_host", "vllm_server_base_url")  # a recipe holds no secret


def write_card(recipe: Recipe, folder: Path, results: dict, environment: dict) -> None:
    """Write FOLDER/README.md for the model, or the adapter, in it."""
    from huggingface_hub import ModelCard, ModelCardData

    model, template = Path(recipe.model["model_name_or_path"]), recipe.template
    base = None if model.is_dir() else str(model)
    adapter = bool(recipe.model.get("use_peft")) or (folder / "adapter_config.json").exists()
    name, method = recipe.output_dir.resolve().name, "SFT" if recipe.sft else "GRPO"
    rows = evaluations(recipe.output_dir, results)
    datasets = {hub for spec in recipe.datasets if (hub := hub_dataset(spec))}
    data = ModelCardData(
        base_model=base,
        datasets=sorted(datasets) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[method.lower(), "trl", "grpo-math"],
        model_name=name,
        eval_results=eval_results(recipe.eval_datasets, rows.get("after", [])) or None,
    )
    temperature = recipe.eval.temperature
    stop = f", stop_strings={list(template.stop)!r}, tokenizer=tokenizer" if template.stop else ""
    end = ", eos_token_id=tokenizer.eos_token_id" if recipe.trainer.get("eos_token") else ""
    chat = recipe.trainer.get("chat_template_kwargs") or {}
    gpus = Counter(environment.get("gpus", [])).items()
    card = ModelCard.from_template(
        data,
        str(TEMPLATE),
        name=name,
        adapter=adapter,
        dtype=trainer_dtype(recipe.keys),
        reference=(folder / "ref").is_dir(),
        method=method,
        origin=f"[{base}](https://huggingface.co/{base})"
        if base
        else f"the local model {'/'.join(model.resolve().parts[-2:])}",
        moments=list(rows),
        results=result_cells(list(rows.values())),
        decoding=f"Sampled at temperature {temperature:g}" if temperature else "Greedy decoding",
        eval_length=recipe.eval_completion_length,
        data=[(public(spec.title), hub_dataset(spec), Path(spec.path or "").name) for spec in recipe.datasets],
        fingerprint=environment.get("dataset_fingerprint"),
        rewards=[
            (spec.name, f"{spec.weight:g}", public(spec.path or spec.reward_model) or "grpo-math's own")
            for spec in recipe.rewards
        ],
        template=template,
        tools=", ".join(public([*recipe.tools, *filter(None, [recipe.environment])])),
        prompt=repr(prompt_of(template)),
        prefill=repr(template.prefill),
        chat_arguments="".join(f", {key}={value!r}" for key, value in chat.items()),
        stop_arguments=stop + end,
        recipe=yaml.safe_dump(public(recipe.raw), sort_keys=False, allow_unicode=True),
        environment=environment,
        hardware=", ".join(f"{count} x {name}" for name, count in gpus) or f"{environment.get('cpus')} CPU cores",
    )
    card.save(folder / "README.md")


def prompt_of(template: PromptTemplate) -> str | list[dict]:
    """The example's prompt, without the prefill of a chat."""
    no_tokenizer: Any = None  # only a chat with a prefill takes one
    return (template.model_copy(update={"prefill": ""}) if template.chat else template).prompt(QUESTION, no_tokenizer)


def hub_dataset(spec: DatasetSpec) -> str | None:
    """The Hub id of a dataset; None for local files."""
    path = spec.path or (ADAPTERS[spec.name].hub if spec.name else None)
    return path if spec.name and path and is_hub_id(path) else None


def evaluations(folder: Path, results: dict) -> dict[str, list[dict]]:
    """The rows of eval.jsonl that measure the model before the first step and after the last."""
    rows = [row for row in read_rows(folder / "eval.jsonl") if "weights" not in row]
    steps = {"before": 0, "after": results.get("steps")}
    return {moment: found for moment, step in steps.items() if (found := [row for row in rows if row["step"] == step])}


def eval_results(datasets: list[DatasetSpec], rows: list[dict]) -> "list[EvalResult]":
    """For the metadata, which the Hub shows with the model: results on datasets of the Hub."""
    from huggingface_hub import EvalResult

    specs = dict(zip(titles(datasets), datasets, strict=True))
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub,
            dataset_name=public(row["dataset"]),
            dataset_split=specs[row["dataset"]].split,
            metric_type="accuracy",
            metric_value=round(row["accuracy"], 4),
        )
        for row in rows
        if row["dataset"] in specs and (hub := hub_dataset(specs[row["dataset"]]))
    ]


def result_cells(moments: list[list[dict]]) -> list[list[str]]:
    """A table row per dataset and figure: dataset, problems, samples, figure, and its value at every moment."""
    return [
        [public(row["dataset"]), f"{row['problems']:,}", str(row["samples"]), name.replace("_", " ")]
        + [str(Figure.of(rows[place], name)) for rows in moments]
        for place, row in enumerate(moments[0] if moments else [])
        for name in FIGURES
    ]


def public(value: Any) -> Any:
    """The parts of a recipe that anyone may see: no absolute path of this machine and no address."""
    if isinstance(value, dict):
        return {key: public(one) for key, one in value.items() if key not in PRIVATE}
    if isinstance(value, list):
        return [public(one) for one in value]
    return LOCAL.sub(lambda path: Path(path[0]).name, value) if isinstance(value, str) else value


def push(trainer: "Trainer", folder: Path) -> None:
    """Upload the model with its card where the recipe sets `push_to_hub`. Not by transformers, which would upload the
    whole run folder with its log and completions."""
    from huggingface_hub import HfApi

    if not trainer.args.push_to_hub or not trainer.hub_model_id or not trainer.is_world_process_zero():
        return
    fix = f"the run is finished: upload it with `hf upload {trainer.hub_model_id} {folder}`"
    with one_line(f"push_to_hub: {trainer.hub_model_id} did not take it", fix, (Exception,)):
        HfApi().upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=folder,
            commit_message="End of training",
            revision=trainer.args.hub_revision,
        )
