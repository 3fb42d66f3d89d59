"""A vLLM server of an evaluation's own, with a copy of the model on every visible GPU; or transformers."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.evaluation.solve import Benchmark, prompts_of
from grpo_math.generation.engines import ServerEngine, TransformersEngine
from grpo_math.generation.processes import end_children
from grpo_math.generation.vllm_engine import engine_arguments, free_port, read_config, vllm_runs_here
from grpo_math.generation.vllm_server import LOOPBACK, TIMEOUT, common_arguments, start_server, visible_gpus, words_of
from grpo_math.models.export import export
from grpo_math.models.models import is_adapter, load_model
from grpo_math.models.safety import load_arguments
from grpo_math.recipe.recipe import Recipe


def uses_vllm(recipe: Recipe) -> bool:
    given = recipe.trainer.get("use_vllm")
    quantised = recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit")
    if given and quantised:
        raise UserError(
            "use_vllm: load_in_4bit and load_in_8bit are transformers' own: leave them out, or --use_vllm false"
        )
    if given is not None:
        return given
    return not quantised and vllm_runs_here(on_cpu=recipe.trainer.get("use_cpu", False))


@contextmanager
def engine_for(recipe: Recipe, benchmarks: list[Benchmark], tokenizer, folder: Path) -> Iterator:
    """transformers, or a vLLM server of our own with a copy of the model on every visible GPU."""
    if not uses_vllm(recipe):
        yield TransformersEngine(load_model(recipe), tokenizer, recipe.eval.batch_size)
        return
    window = window_for(recipe, benchmarks, tokenizer)
    with tempfile.TemporaryDirectory(prefix="grpo-math-") as temporary:
        port, served = free_port(), recipe.model["model_name_or_path"]
        if is_adapter(served, recipe.model.get("model_revision")):
            served, adapter = os.path.join(temporary, "merged"), served
            export(Path(adapter), Path(served), engine_arguments(recipe)["dtype"], **load_arguments(recipe.trainer))
        arguments = common_arguments(recipe, served, window, LOOPBACK, port) | {
            "data_parallel_size": copies(recipe),
            "generation_config": "vllm",
        }
        words = words_of(served, arguments | engine_arguments(recipe))
        url, log = f"http://{LOOPBACK}:{port}", folder / "vllm_server.log"
        start_server(words, {"VLLM_HOST_IP": LOOPBACK}, url, log, recipe.trainer.get("vllm_server_timeout", TIMEOUT))
        try:
            yield ServerEngine(url, tokenizer)
        finally:
            end_children()


def copies(recipe: Recipe) -> int | None:
    """How many copies of the model the visible GPUs take; requests carry their own seeds, so that copies do not sample
    alike."""
    gpus = [] if recipe.trainer.get("use_cpu") else visible_gpus()
    size = recipe.trainer.get("vllm_tensor_parallel_size", 1)
    if gpus and len(gpus) < size:
        raise UserError(f"vllm_tensor_parallel_size: {size}, and visible are {len(gpus)} GPUs")
    return max(1, len(gpus) // size) if gpus else None


def window_for(recipe: Recipe, benchmarks: list[Benchmark], tokenizer) -> int:
    """vLLM's context in tokens: the longest prompt and completion, as far as the model has room for both."""
    longest = max(len(ids) for one in benchmarks for ids in prompts_of(one, recipe.template, tokenizer))
    window = longest + recipe.eval_completion_length
    room = getattr(read_config(recipe).get_text_config(), "max_position_embeddings", window)
    if longest >= room:
        raise UserError(f"eval.datasets: the longest prompt has {longest} tokens, the model has room for {room}")
    return min(window, room)
