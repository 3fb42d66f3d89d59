"""A run as a plain checkpoint that transformers and vLLM load: a LoRA adapter is merged into its base model."""

import argparse
from pathlib import Path

from grpo_math.errors import UserError, one_line
from grpo_math.models.policy import load_adapter
from grpo_math.models.source import ModelSource
from grpo_math.models.tokenizer import end_tokens, plain_tokenizer
from grpo_math.models.weights import load_base
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import quiet_progress_bars


def main(options: argparse.Namespace) -> None:
    recipe = load_recipe(["--model_name_or_path", str(options.run), *options.words], "evaluation")
    quiet_progress_bars()
    export(ModelSource.of(recipe.keys), options.out, options.dtype)
    print(f"{options.out}: {options.dtype}, for transformers and `vllm serve {options.out}`")


def export(model: ModelSource, out: Path, dtype: str = "float32") -> None:
    """Write the whole model, an adapter merged into its base model, to the new folder `out`."""
    import torch

    if not any(Path(model.name, file).exists() for file in ("config.json", "adapter_config.json")):
        raise UserError(f"{model.name}: no model and no adapter there: give a run's folder or a checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: name a new folder")
    model.check()
    tokenizer = plain_tokenizer(model)
    whole = load_adapter(model).merge_and_unload() if model.adapter else load_base(model)
    # SFT may have taught another end token than the base model's
    whole.generation_config.eos_token_id = sorted(end_tokens(model, tokenizer)) or None
    with one_line(f"{out}: cannot be written"):
        whole.to(getattr(torch, dtype)).save_pretrained(out)
        tokenizer.save_pretrained(out)
