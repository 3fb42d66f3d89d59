"""Which program of a launch runs where: the accelerate config, the processes, and a share of the GPUs for each side."""

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_math import run_folder
from grpo_math.batch import batch_arguments
from grpo_math.errors import UserError
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.vllm_engine import check_vllm, free_port
from grpo_math.vllm_server import (
    ENVIRONMENT,
    check_port,
    needed_window,
    server_command,
    visible_gpus,
)

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
LOOPBACK = "127.0.0.1"  # the server's development endpoints know no password
PATIENCE = 600  # seconds that torch's elastic agent leaves its workers for a last checkpoint, when asked to end
OPTIONS = {
    "layout": "single_gpu",
    "num_processes": None,
    "server_gpus": None,
    "nodes": "1",
    "node_rank": os.environ.get("SLURM_NODEID", "0"),
    "main_process_ip": None,
    "main_process_port": None,
}


def parse(argv: list[str]) -> tuple[dict, list[str], bool]:
    """Our options, the trainer's arguments, and whether this is a dry run."""
    options, arguments, words = dict(OPTIONS), [], list(argv)
    dry_run = any(word in ("--dry-run", "--dry_run") for word in words)
    words = [word for word in words if word not in ("--dry-run", "--dry_run")]
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in OPTIONS:
            arguments.append(word)
        elif not words or words[0].startswith("--"):
            raise UserError(f"{word}: want a value after it")
        else:
            options[name] = words.pop(0)
    for name in ("num_processes", "server_gpus", "nodes", "node_rank", "main_process_port"):
        value = options[name]
        if value is not None and not value.isdecimal():
            raise UserError(f"--{name}: want a whole number, got {value!r}")
        options[name] = None if value is None else int(value)
    return options, arguments, dry_run


@dataclass
class Command:
    """One program to start, what it has in its environment beyond ours, and its GPUs (None: it needs none)."""

    words: list[str]
    environment: dict[str, str]
    gpus: list[str] | None

    def __post_init__(self):
        if self.gpus is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(["python", *self.words[1:]])])


@dataclass
class Plan:
    """What is started, and on which GPUs."""

    recipe: Recipe
    layout: str
    processes: int
    batch: dict
    trainer: Command
    server: Command | None = None
    url: str = ""

    def __str__(self) -> str:
        def where(command: Command) -> str:
            return "on the CPU" if command.gpus is None else f"on GPU {', '.join(command.gpus)}"

        lines = [f"layout {self.layout}: {self.processes} training process{'es' if self.processes > 1 else ''} "]
        lines[0] += where(self.trainer) + (f", vLLM server {where(self.server)}" if self.server else "")
        lines += [f"{key}: {value}" for key, value in self.batch.items()]
        lines += [f"server:  {self.server}"] if self.server else []
        return "\n".join([*lines, f"trainer: {self.trainer}"])


def read_layout(name: str) -> tuple[Path, dict]:
    own = Path(name)
    path = own if own.suffix in (".yaml", ".yml") else CONFIGS / f"{name}.yaml"
    try:
        return path, yaml.safe_load(path.read_text())
    except OSError:
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UserError(f"--layout: no layout {name}: use one of {known}, or the path of your own .yaml") from None


def make_plan(options: dict, arguments: list[str]) -> Plan:
    """Everything that can be known before anything is started. Raises UserError for what would not work."""
    file, config = read_layout(options["layout"])
    if config.get("use_cpu") and "--use_cpu" not in arguments:
        arguments = [*arguments, "--use_cpu", "true"]
    recipe = load_recipe(arguments)
    with contextlib.redirect_stdout(None):  # the trainer says where it begins
        run_folder.find_checkpoint(recipe)
    serves = serves_itself(recipe, file.stem)
    gpus = None if recipe.trainer.get("use_cpu") else visible_gpus()
    copies = 1
    if serves:
        check_vllm()
        parallel = recipe.trainer.get("vllm_tensor_parallel_size", 1)
        serving = options["server_gpus"] or parallel
        copies, rest = divmod(serving, parallel)
        if rest:
            raise UserError(f"--server_gpus: {serving} is no multiple of vllm_tensor_parallel_size {parallel}")
    local, training, server_gpus = share_gpus(options, config, gpus, serving if serves else 0)
    processes = local * options["nodes"]
    batch = batch_arguments(recipe.trainer, recipe.prompts_per_step, processes) if recipe.sft is None else {}
    words = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(file)]
    words += accelerate_arguments(options, config, processes)
    words += ["-m", "grpo_math.train" if recipe.sft is None else "grpo_math.sft", *arguments]
    environment = trainer_environment(options, config, processes, on_cpu=gpus is None)
    plan = Plan(recipe, file.stem, processes, batch, Command(words, environment, training))
    if serves:
        add_server(plan, server_gpus, copies)
    return plan


def serves_itself(recipe: Recipe, layout: str) -> bool:
    """Whether this launch starts a vLLM server: for the layout dual_gpu, and for `vllm_mode: server` without a URL."""
    given = recipe.trainer
    elsewhere = {"vllm_server_base_url", "vllm_server_host"} & given.keys()
    if layout != "dual_gpu":
        return bool(given.get("use_vllm") and given.get("vllm_mode") == "server" and not elsewhere)
    if elsewhere:
        raise UserError(
            f"{elsewhere.pop()}: the layout dual_gpu starts a server of its own: leave it out, or use single_gpu"
        )
    if recipe.sft is not None:
        raise UserError("--layout: SFT generates nothing that the second GPU of dual_gpu could serve: use single_gpu")
    if given.get("use_vllm") is False:
        raise UserError("use_vllm: false, but the layout dual_gpu generates with vLLM: leave it out, or use single_gpu")
    return True


def share_gpus(options: dict, config: dict, gpus: list[str] | None, serving: int):
    """The number of training processes on this machine, their GPUs, and the server's (both None on a CPU)."""
    single = config["distributed_type"] == "NO"
    if single and (options["num_processes"] or 1) != 1:
        raise UserError(f"--num_processes: the layout {options['layout']} is for one process: use multi_gpu")
    if gpus is None:
        return 1 if single else options["num_processes"] or config["num_processes"], None, None
    left = len(gpus) - serving
    local = 1 if single else options["num_processes"] or max(left, 1)
    seen = (
        f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}" if "CUDA_VISIBLE_DEVICES" in os.environ else "all"
    )
    least = 2 if config["distributed_type"] == "MULTI_GPU" and options["nodes"] == 1 else 1
    if max(local, least) > left:
        server = f" and {serving} for the vLLM server" if serving else ""
        raise UserError(
            f"--layout: {options['layout']} needs {max(local, least)} GPU(s) for training{server}, and {len(gpus)} are "
            f"visible ({seen}): use a smaller layout (single_gpu), or --layout cpu with --use_cpu true --bf16 false"
        )
    return local, gpus[:local], gpus[local : local + serving]


def trainer_environment(options: dict, config: dict, processes: int, on_cpu: bool) -> dict[str, str]:
    environment = {"GRPO_MATH_PROCESSES": str(processes), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE)}
    if on_cpu and config["distributed_type"] != "DEEPSPEED":  # with cpu:0, accelerate's own name, nothing can resume
        environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    if options["nodes"] == 1:
        environment["VLLM_HOST_IP"] = LOOPBACK
    return environment


def accelerate_arguments(options: dict, config: dict, processes: int) -> list[str]:
    words = ["--num_processes", str(processes)]
    if options["nodes"] > 1:
        if options["main_process_ip"] is None:
            raise UserError("--nodes: give --main_process_ip too, the address of the first training machine")
        words += ["--num_machines", str(options["nodes"]), "--machine_rank", str(options["node_rank"])]
        words += ["--main_process_ip", options["main_process_ip"]]
        return [*words, "--main_process_port", str(options["main_process_port"] or 29500)]
    if config["distributed_type"] != "NO":
        words += ["--num_machines", "1", "--machine_rank", "0"]
        words += ["--main_process_port", str(options["main_process_port"] or free_port())]
    return words


def add_server(plan: Plan, gpus: list[str] | None, copies: int) -> None:
    """A server on free ports of this machine, and a trainer that knows them."""
    given = plan.recipe.trainer
    port = given.get("vllm_server_port") or free_port()
    check_port(port, "vllm_server_port")
    group = given.get("vllm_group_port") or free_port()
    check_port(group, "vllm_group_port")
    plan.url = f"http://{LOOPBACK}:{port}"
    window = needed_window(plan.recipe)
    words = server_command(plan.recipe, window, LOOPBACK, port, copies)
    plan.server = Command(words, ENVIRONMENT | {"VLLM_HOST_IP": LOOPBACK}, gpus)
    plan.trainer.words += ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_base_url", plan.url]
    plan.trainer.words += ["--vllm_group_port", str(group)]
