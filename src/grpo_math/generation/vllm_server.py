"""The vLLM server that a training generates on: how it is started, and whether it is the right one."""

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from grpo_math.errors import UserError
from grpo_math.generation.processes import how_ended, start
from grpo_math.generation.vllm_engine import check_parallel, engine_arguments, fit_window
from grpo_math.models import ModelSource, check_weights, without_weights

if TYPE_CHECKING:
    from requests import Response
    from trl import GRPOConfig

LOOPBACK = "127.0.0.1"  # the server's development endpoints have no authentication
UTILISATION = 0.9  # of each of the server's GPUs, on which nothing else runs; vLLM's own default
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # TRL changes weights through the development endpoints
PROGRAM = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]  # `vllm serve` of this Python


def start_up(keys: dict) -> float:
    """The seconds that a server of a recipe's model may take to answer: `vllm_server_timeout`, else ten minutes to
    compile and to record CUDA graphs, and the time to read its 16-bit weights at 50 MB/s, a slow shared disk."""
    if given := keys.get("vllm_server_timeout"):
        return given
    source = ModelSource.of(keys)
    return 600 + 2 * without_weights(source.config(), source.trust_remote_code).num_parameters() / 50e6


def ready_by(seconds: float) -> dict[str, str]:
    """vLLM's own limit for its processes (600 s), as a variable of their environment."""
    return {"VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(seconds))}


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; as in CUDA, -1 ends the list. Raises UserError
    for one that does not exist: CUDA would leave it out, and those after it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    gpus = [gpu.strip() for gpu in named.split(",")]
    gpus = list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), gpus))
    if len(set(gpus)) < len(gpus):
        raise UserError(f"CUDA_VISIBLE_DEVICES: {named} has a GPU twice: list each once")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        listed = ""
    names = re.findall(r"GPU (\d+):|UUID: ([^)]+)", listed)
    for gpu in gpus:
        known = any(gpu == index or (not gpu.isdigit() and uuid.startswith(gpu)) for index, uuid in names)
        if not known and (listed or not cuda_works()):
            raise UserError(f"CUDA_VISIBLE_DEVICES: {named}: no GPU {gpu} on this machine: see nvidia-smi -L")
    return gpus


def cuda_works() -> bool:
    import torch

    return torch.cuda.is_available()


def server_words(keys: dict, engine: dict, window: int, host: str, port: int) -> list[str]:
    """The arguments of `vllm serve` as TRL 1.16 expects them, from a recipe's TRL keys and its `vllm_engine_kwargs`
    (`engine`), which win over what is set here.

    One copy of the model on vllm_tensor_parallel_size GPUs: vLLM seeds the copies of a data-parallel server alike and
    spreads a group over them, so that its completions would be identical.
    """
    check_parallel(keys)
    arguments = common_arguments(keys, window, host, port) | {
        "weight_transfer_config": {"backend": "nccl"},
        "logprobs_mode": "processed_logprobs",  # the importance-sampling correction needs them
        "max_logprobs": -1,
    }
    base = ModelSource.of(keys).base  # TRL merges an adapter into it at each sync
    return words_of(base, arguments | engine_arguments(keys, engine))


def common_arguments(keys: dict, window: int, host: str, port: int) -> dict:
    """Of every server we start, for training or for evaluation."""
    return {
        "host": host,
        "port": port,
        "max_model_len": window,
        "gpu_memory_utilization": keys.get("vllm_gpu_memory_utilization", UTILISATION),
        "tensor_parallel_size": keys.get("vllm_tensor_parallel_size", 1),
        "model_impl": keys.get("vllm_model_impl", "auto"),
        "trust_remote_code": keys.get("trust_remote_code") or None,
        "seed": keys.get("seed", 42),
    }


def words_of(source: ModelSource, arguments: dict) -> list[str]:
    """The model and the arguments as vLLM's command line takes them; those that are None are left out. Raises UserError
    for weights that do not fit."""
    check_weights(source)
    revision = None if source.revision == "main" else source.revision
    words = [source.name]
    for name, value in (arguments | {"revision": revision}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def check_port(port: int, key: str) -> None:
    """Raise UserError where another process has the port: TRL would wait for it for minutes."""
    if not 0 < port < 2**16:
        raise UserError(f"{key}: expected a port from 1 to {2**16 - 1}, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"{key}: port {port} is in use ({error.strerror}): use another") from None


def start_server(words: list[str], environment: dict[str, str], url: str, log: Path, timeout: float) -> Popen:
    """A `vllm serve` process that answers. Raises UserError, with the end of its log, where it never does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    logging = {"VLLM_CONFIGURE_LOGGING": "1"}  # to its log; in this process runs.logs has turned it off
    server = start([*PROGRAM, *words], os.environ | environment | ready_by(timeout) | logging, log)
    started = time.monotonic()
    try:
        wait_until_healthy(url, timeout, server)
    except UserError:
        show_end(log)
        raise
    print(f"vLLM server ready after {time.monotonic() - started:.0f} s (log: {log})", flush=True)
    return server


def show_end(log: Path, lines: int = 15) -> None:
    """The last lines of a log, and before them its first error, which is often the cause of those at the end."""
    tail = log.read_text(errors="replace").splitlines()
    first = [line for line in tail[:-lines] if re.search(r"\b[A-Z]\w*Error: ", line)][:1]
    for line in [*first, *tail[-lines:]]:
        print(f"| {line}", file=sys.stderr)


def ask(url: str, timeout: float = 5, json: dict | None = None) -> "Response":
    """GET, or POST where there is JSON to send, without a proxy. Raises OSError where nothing answers."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        return session.request("POST" if json else "GET", url, json=json, timeout=timeout)


def wait_until_healthy(base_url: str, timeout: float, server: Popen | None = None) -> None:
    """Return once the server answers. Raises UserError after `timeout` seconds, when the process `server` has ended,
    and when something else than a vLLM server answers."""
    started, reported = time.monotonic(), 0
    while True:
        if server and server.poll() is not None:
            raise UserError(f"the vLLM server {how_ended(server.returncode)}: the end of its log is above")
        waited = time.monotonic() - started
        try:
            status = ask(f"{base_url}/health").status_code
        except OSError as error:
            status, reason = None, type(error).__name__
        if status == 200:
            return
        if status is not None and status != 503:
            raise UserError(f"vllm_server_base_url: {base_url}/health returned {status}: not a vLLM server")
        if waited > timeout:
            raise UserError(
                f"vllm_server_base_url: no vLLM server at {base_url} after {timeout:.0f} s ({status or reason}): start "
                "it with grpo-math serve, let grpo-math launch start it, or raise vllm_server_timeout"
            )
        if waited > reported + 10:
            reported += 10
            print(f"waiting for the vLLM server at {base_url}, {reported} s", flush=True)
        time.sleep(0.5)


def server_url(config: "GRPOConfig") -> str:
    """The address of the recipe's server. TRL would find nothing with a slash at its end, which is removed."""
    if config.vllm_server_base_url is None:
        return f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    url = config.vllm_server_base_url = config.vllm_server_base_url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"vllm_server_base_url: expected http://HOST:PORT, got {url!r}")
    return url


def check_server(keys: dict, engine: dict, config: "GRPOConfig", longest_prompt: int, longest_completion: int) -> None:
    """Raise UserError where the server is not the one this training needs, before a model is loaded: TRL never compares
    the served model with the trained one."""
    url = server_url(config)
    host, known = urlsplit(url).hostname, os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):  # for TRL, which would go through a proxy
        os.environ[name] = f"{known},{host}" if known else str(host)
    if config.process_index == 0:
        check_port(config.vllm_group_port, "vllm_group_port")
    wait_until_healthy(url, config.vllm_server_timeout)
    models = ask(f"{url}/v1/models")
    model = models.json()["data"][0] if models.ok else {}
    info = ask(f"{url}/server_info?config_format=json", timeout=60)
    wanted, dtype = ModelSource.of(keys).base.name, engine_arguments(keys, engine)["dtype"]
    if what := refusal(model, info.json()["vllm_config"] if info.ok else None, wanted, dtype):
        raise UserError(f"vllm_server_base_url: {url} {what}: start it with grpo-math serve")
    fit_window(model["max_model_len"], longest_prompt, longest_completion)


def refusal(model: dict, info: dict | None, wanted: str, dtype: str) -> str | None:
    """Why a server with this model and configuration cannot generate for a training of `wanted` in `dtype`."""
    if "root" not in model:
        return "names no model: not a vLLM server that TRL can use"
    if os.path.realpath(model["root"]) != os.path.realpath(wanted):
        return f"serves {model['root']}, the recipe trains {wanted}"
    if info is None:
        return "takes no new weights (no VLLM_SERVER_DEV_MODE=1)"
    if info["weight_transfer_config"] is None:
        return "takes no new weights (no --weight-transfer-config)"
    served, mode = info["model_config"]["dtype"].removeprefix("torch."), info["model_config"]["logprobs_mode"]
    if served != dtype:
        return f"computes in {served}, the trainer in {dtype}"
    return None if mode == "processed_logprobs" else f"has --logprobs-mode {mode}, not processed_logprobs"
