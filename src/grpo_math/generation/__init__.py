"""Completions, by one of three engines: transformers, vLLM in this process, or a vLLM server over HTTP.

Enters: prompts as token ids and a `Sampling`; for vLLM the TRL keys of a recipe. Leaves: `Completion`s, the engine's
arguments, the words that start a server, and processes that surely end. Imports errors, data, recipe and models.
"""

from grpo_math.generation.conversations import converse, for_logs
from grpo_math.generation.engines import (
    Completion,
    Engine,
    Sampling,
    ServerEngine,
    TransformersEngine,
    generating,
    training_engine,
)
from grpo_math.generation.processes import Burst, Stopped, heeded, supervised
from grpo_math.generation.vllm_engine import check_vllm, engine_arguments, fit_window, longest_sequence

__all__ = [
    "Burst", "Completion", "Engine", "Sampling", "ServerEngine", "Stopped", "TransformersEngine", "check_vllm",
    "converse", "engine_arguments", "fit_window", "for_logs", "generating", "heeded", "longest_sequence", "supervised",
    "training_engine",
]  # fmt: skip
