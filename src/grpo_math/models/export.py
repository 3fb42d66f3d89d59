"""A run as a plain checkpoint that transformers and vLLM load: a LoRA adapter is merged into its base model."""

import argparse
from pathlib import Path

from grpo_math.errors import UserError, one_line
from grpo_math.models.models import FIX, check_source, end_tokens, load_adapter, tokenizer_source
from grpo_math.models.safety import load_arguments, without_its_code
from grpo_math.recipe.parts import model_folder
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import quiet_progress_bars


def main(options: argparse.Namespace) -> None:
    recipe = load_recipe(["--model_name_or_path", str(options.run), *options.words], "evaluation")
    export(options.run, options.out, options.dtype, **load_arguments(recipe.trainer))
    print(f"{options.out}: {options.dtype}, for transformers and `vllm serve {options.out}`")


def export(run: Path, out: Path, dtype: str = "float32", **arguments) -> None:
    """Write the model of a run, whole, to the new folder `out`; `arguments` are those of safety.load_arguments."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_progress_bars()
    folder = Path(model_folder(str(run)))
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: no model and no adapter there: give a run's folder or a checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder")
    arguments = load_arguments({}) | arguments
    source = tokenizer_source(str(folder))
    with one_line(f"{folder}: no tokenizer", FIX), without_its_code(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=arguments["trust_remote_code"])
    if (folder / "adapter_config.json").exists():
        model = load_adapter(str(folder), **arguments).merge_and_unload()
    else:
        check_source(str(folder), **arguments)
        with one_line(f"{folder}: no model", FIX):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **arguments)
    ends = end_tokens(str(folder)) | {tokenizer.eos_token_id}  # SFT may have taught another than the base model's
    model.generation_config.eos_token_id = sorted(ends - {None}) or None
    with one_line(f"{out}: cannot be written"):
        model.to(getattr(torch, dtype)).save_pretrained(out)
        tokenizer.save_pretrained(out)
