"""The engine of an evaluation: transformers, or a vLLM server of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UserError
from grpo_math.generation import Engine, ServerEngine, TransformersEngine, engine_arguments, vllm_server
from grpo_math.generation.processes import end_children
from grpo_math.generation.vllm_engine import free_port, vllm_runs_here
from grpo_math.generation.vllm_server import LOOPBACK
from grpo_math.models import ModelSource, context_of, load_model
from grpo_math.models.export import export
from grpo_math.runs.progress import stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def uses_vllm(keys: dict) -> bool:
    """As `use_vllm` asks, by default wherever vLLM runs."""
    quantised = keys.get("load_in_4bit") or keys.get("load_in_8bit")
    if keys.get("use_vllm") and quantised:
        raise UserError("use_vllm: load_in_4bit and load_in_8bit need transformers: add --use_vllm false")
    return keys["use_vllm"] if keys.get("use_vllm") is not None else not quantised and vllm_runs_here(keys)


@contextmanager
def engine_for(
    keys: dict, engine: dict, tokenizer: "PreTrainedTokenizerBase", batch_size: int, longest: tuple[int, int], log: Path
) -> Iterator[Engine]:
    """transformers with batches of `batch_size`, or a vLLM server with a copy of the model on every visible GPU.

    `keys` are a recipe's TRL keys, `engine` its `vllm_engine_kwargs`, `longest` the tokens of the longest prompt and of
    the longest completion; `log` is the server's.
    """
    source = ModelSource.of(keys)
    window = window_for(source, *longest)
    if not uses_vllm(keys):
        with stage("loading the model"):
            local = TransformersEngine(load_model(keys), tokenizer, batch_size)
        yield local
        return
    arguments, port = engine_arguments(keys, engine), free_port()
    url = f"http://{LOOPBACK}:{port}"
    with tempfile.TemporaryDirectory(prefix="grpo-math-") as temporary:
        if source.adapter:
            merged = Path(temporary, "merged")
            export(source, merged, arguments["dtype"])
            source = ModelSource(str(merged))
        common = vllm_server.common_arguments(keys, window, LOOPBACK, port)
        copies = {"data_parallel_size": copies_of(keys), "generation_config": "vllm"}
        words = vllm_server.words_of(source, common | copies | arguments)
        timeout = vllm_server.start_up(keys)
        with stage("starting vLLM"):
            server = vllm_server.start_server(words, {"VLLM_HOST_IP": LOOPBACK}, url, log, timeout)
        try:
            yield ServerEngine(url, tokenizer)
        finally:
            end_children(server)


def copies_of(keys: dict) -> int | None:
    """How many copies of the model the visible GPUs hold; requests carry their own seeds, so copies do not sample
    alike."""
    gpus = [] if keys.get("use_cpu") else vllm_server.visible_gpus()
    size = keys.get("vllm_tensor_parallel_size", 1)
    if gpus and len(gpus) < size:
        raise UserError(f"vllm_tensor_parallel_size: {size}, but only {len(gpus)} GPUs are visible")
    return len(gpus) // size if gpus else None


def window_for(source: ModelSource, longest_prompt: int, longest_completion: int) -> int:
    """vLLM's context in tokens, as far as the model has room for both."""
    window, room = longest_prompt + longest_completion, context_of(source.config())
    if longest_prompt >= room:
        raise UserError(
            f"eval.datasets: the longest prompt has {longest_prompt} tokens, the model's context is {room}: leave out "
            "the dataset with it, or use a model with a longer context"
        )
    return min(window, room)
