"""A run as a plain checkpoint that transformers and vLLM load: a LoRA adapter is merged into its base model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UserError, one_line
from grpo_math.models.policy import changes_tied_weights, load_adapter
from grpo_math.models.source import ModelSource, copy_processor
from grpo_math.models.tokenizer import end_tokens, plain_tokenizer
from grpo_math.models.weights import check_finite, load_base
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import next_step, quiet_progress_bars

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDING = 1e-4  # of the largest logit: float32 merges differ by about 1e-6
PROMPTS = (
    "What is 12 + 30?",
    "Ava has 3 apples and gets 4 more. How many does she have?",
    "Solve $x^2 = 9$ for $x > 0$.",
)


def main(options: argparse.Namespace) -> None:
    recipe = load_recipe(["--model_name_or_path", str(options.run), *options.words], "evaluation")
    quiet_progress_bars()
    export(ModelSource.of(recipe.keys), options.out, options.dtype)
    print(f"{options.out}: {options.dtype}, for transformers and `vllm serve {options.out}`")
    known = options.run / "recipe.yaml"
    next_step("evaluate", "--model", options.out, *(["--config", known] if known.exists() else ["--suite", "gsm8k"]))


def export(model: ModelSource, out: Path, dtype: str = "float32") -> None:
    """Write the whole model, an adapter merged into its base model, to the new folder `out`."""
    import torch

    if not any(Path(model.name, file).exists() for file in ("config.json", "adapter_config.json")):
        raise UserError(f"{model.name}: no model or adapter there: give a run's folder or a checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: name a new folder")
    model.check()
    tokenizer = plain_tokenizer(model)
    whole = merged(load_adapter(model), tokenizer, model.name) if model.adapter else load_base(model)
    # SFT may have taught another end token than the base model's
    whole.generation_config.eos_token_id = sorted(end_tokens(model, tokenizer)) or None
    with one_line(f"{out}: cannot be written"):
        whole = whole.to(getattr(torch, dtype))
        check_finite(whole, f"{model.name} in {dtype}")
        whole.save_pretrained(out)
        tokenizer.save_pretrained(out)
        copy_processor(whole, out)


def merged(adapter: "PeftModel", tokenizer: "PreTrainedTokenizerBase", name: str) -> "PreTrainedModel":
    """The adapter merged into its base model. Raises UserError where that has other logits: the model would not be the
    one that was trained and evaluated."""
    import torch

    model: Any = adapter.get_base_model()
    if changes_tied_weights(adapter):
        head = getattr(model.get_output_embeddings(), "base_layer", model.get_output_embeddings())
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    before = logits(adapter, tokenizer)
    whole: Any = adapter.merge_and_unload()
    difference = max(
        ((new - old).abs().max() / old.abs().max()).item()
        for old, new in zip(before, logits(whole, tokenizer), strict=True)
    )
    if not difference <= ROUNDING:
        raise UserError(
            f"{name}: merging the adapter changes the logits (by {difference:.2g} of the largest, "
            f"rounding explains {ROUNDING:g}): use the base model and the adapter unchanged, with peft"
        )
    return whole


def logits(model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase") -> "list[Tensor]":
    """Of each prompt, in the form (1, tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return [
            model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits for prompt in PROMPTS
        ]
