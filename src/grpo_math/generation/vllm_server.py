"""The vLLM server that a training generates on: how it is started, and whether it is the right one."""

import itertools
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from grpo_math.errors import UserError
from grpo_math.generation.processes import start
from grpo_math.generation.vllm_engine import (
    built_for_cpus,
    check_parallel,
    engine_arguments,
    fit_window,
    served_model,
)
from grpo_math.generation.vllm_http import ask, server_url, wait_until_healthy
from grpo_math.recipe.recipe import Recipe

LOOPBACK = "127.0.0.1"  # the server's development endpoints know no password
CPU_UTILISATION = 0.4  # of the memory, where others run too
UTILISATION = 0.9  # of each of the server's GPUs, on which nothing else runs; vLLM's own default
TIMEOUT = 600  # seconds for a server to come up, with a large model; vllm_server_timeout changes it
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # TRL changes weights through the development endpoints


def program() -> list[str]:
    """`vllm serve` of this Python."""
    return [
        sys.executable,
        "-m",
        "grpo_math.generation.vllm_cpu" if built_for_cpus() else "vllm.entrypoints.cli.main",
        "serve",
    ]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; as in CUDA, -1 ends the list."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    gpus = [gpu.strip() for gpu in named.split(",")]
    gpus = list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), gpus))
    if len(set(gpus)) < len(gpus):
        raise UserError(f"CUDA_VISIBLE_DEVICES: {named} names a GPU twice: name each once")
    return gpus


def server_words(recipe: Recipe, window: int, host: str, port: int) -> list[str]:
    """What follows `vllm serve`, as TRL 1.16 expects it. The recipe's `vllm_engine_kwargs` win over what is set here.

    One copy of the model on vllm_tensor_parallel_size GPUs: vLLM seeds the copies of a data-parallel server alike and
    spreads a group over them, so that it would have identical completions.
    """
    check_parallel(recipe)
    served = served_model(recipe)
    arguments = common_arguments(recipe, served, window, host, port) | {
        "weight_transfer_config": {"backend": "nccl"},
        "logprobs_mode": "processed_logprobs",  # the importance-sampling correction needs them
        "max_logprobs": -1,
    }
    return words_of(served, arguments | engine_arguments(recipe))


def common_arguments(recipe: Recipe, served: str, window: int, host: str, port: int) -> dict:
    """Of every server we start, for training or for evaluation."""
    given = recipe.trainer
    return {
        "host": host,
        "port": port,
        "max_model_len": window,
        "gpu_memory_utilization": given.get(
            "vllm_gpu_memory_utilization", CPU_UTILISATION if built_for_cpus() else UTILISATION
        ),
        "tensor_parallel_size": given.get("vllm_tensor_parallel_size", 1),
        "model_impl": given.get("vllm_model_impl", "auto"),
        "trust_remote_code": given.get("trust_remote_code") or None,
        "seed": given.get("seed", 42),
        "revision": recipe.model.get("model_revision") if served == recipe.model["model_name_or_path"] else None,
    }


def words_of(served: str, arguments: dict) -> list[str]:
    words = [served]
    for name, value in arguments.items():
        words += flag(name.replace("_", "-"), value)
    return words


def flag(name: str, value) -> list[str]:
    """One argument as vLLM's command line takes it; None is left out."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]


def check_port(port: int, key: str) -> None:
    """Raise UserError where another process has the port: TRL would wait for it for minutes."""
    if not 0 < port < 2**16:
        raise UserError(f"{key}: want a port from 1 to {2**16 - 1}, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"{key}: port {port} is taken ({error.strerror}): give another") from None


def start_server(words: list[str], environment: dict[str, str], url: str, log: Path, timeout: float):
    """A `vllm serve` process that answers. Raises UserError, with the end of its log, where it never does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    server = start([*program(), *words], os.environ | environment, log)

    def still_there() -> None:
        if server.poll() is not None:
            raise UserError(f"the vLLM server ended with status {server.returncode}: its log, {log}, is above")

    started = time.monotonic()
    try:
        wait_until_healthy(url, timeout, still_there)
    except UserError:
        show_end(log)
        raise
    print(f"vLLM server ready after {time.monotonic() - started:.0f} s (log: {log})", flush=True)
    return server


def show_end(log: Path, lines: int = 15) -> None:
    """The last lines of a log, and before them its first error, which is often the cause of those at the end."""
    said = log.read_text(errors="replace").splitlines()
    first = [line for line in said[:-lines] if re.search(r"\b[A-Z]\w*Error: ", line)][:1]
    for line in [*first, *said[-lines:]]:
        print(f"| {line}", file=sys.stderr)


def check_server(recipe: Recipe, config, longest_prompt: int, longest_completion: int) -> None:
    """Raise UserError where the server is not the one this training needs, before a model is loaded.

    TRL itself never compares the served model with the trained one.
    """
    url, key = server_url(config), "vllm_server_base_url"
    host, known = urlsplit(url).hostname, os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):  # for TRL, which would go through a proxy
        os.environ[name] = f"{known},{host}" if known else host
    if config.process_index == 0:
        check_port(config.vllm_group_port, "vllm_group_port")
    wait_until_healthy(url, config.vllm_server_timeout)
    fix = "start it with grpo-math serve"
    _, models = ask(f"{url}/v1/models")
    model, wanted = (models or {"data": [{}]})["data"][0], served_model(recipe)
    if "root" not in model:
        raise UserError(f"{key}: {url}/v1/models names no model: it is no vLLM server that TRL could use: {fix}")
    if os.path.realpath(model["root"]) != os.path.realpath(wanted):
        raise UserError(f"{key}: {url} serves {model['root']}, the recipe trains {wanted}: {fix}")
    fit_window(model["max_model_len"], longest_prompt, longest_completion)
    status, info = ask(f"{url}/server_info?config_format=json", timeout=60)
    if status != 200:
        raise UserError(f"{key}: {url} takes no new weights (no VLLM_SERVER_DEV_MODE=1): {fix}")
    info = info["vllm_config"]
    if info["weight_transfer_config"] is None:
        raise UserError(f"{key}: {url} takes no new weights (no --weight-transfer-config): {fix}")
    dtypes = info["model_config"]["dtype"].removeprefix("torch."), engine_arguments(recipe)["dtype"]
    if dtypes[0] != dtypes[1]:
        raise UserError(f"{key}: {url} computes in {dtypes[0]}, the trainer in {dtypes[1]}: {fix}")
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise UserError(f"{key}: {url} has --logprobs-mode {mode}, not processed_logprobs: {fix}")
