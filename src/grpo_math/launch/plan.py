"""The plan of a launch: its commands, and the processes and GPUs of each."""

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from grpo_math.checks.machine import batch_of, steps_of
from grpo_math.data import load_parts, mix_parts
from grpo_math.errors import WORKS_HERE, UserError, at_once
from grpo_math.generation.processes import start
from grpo_math.generation.vllm_engine import check_parallel, check_vllm, free_port
from grpo_math.generation.vllm_server import ENVIRONMENT, LOOPBACK, PROGRAM, check_port, server_words, visible_gpus
from grpo_math.launch.layouts import EVALUATION, SERVER, Layout, read_layout
from grpo_math.launch.serve import needed_window
from grpo_math.recipe.batch import batch_arguments, count, describe_batch, world_size
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.trainer.config import check_hub, check_machine

PATIENCE = 600  # seconds that torch's elastic agent gives its workers to save a checkpoint


@dataclass
class Command:
    """One program to start: its name for a person, the words that start it, its arguments, the variables it has beyond
    our environment, and its GPUs (None: it needs none)."""

    name: str
    program: list[str]
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    gpus: list[str] | None = None

    def __post_init__(self) -> None:
        if self.gpus is not None:
            order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's numbers
            self.environment |= {"CUDA_DEVICE_ORDER": order, "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, self.name, shlex.join(self.words)])

    def start(self, log: Path | None = None) -> subprocess.Popen:
        return start([*self.program, *self.words], os.environ | self.environment, log)

    @property
    def where(self) -> str:
        return "the CPU" if self.gpus is None else f"GPU {', '.join(self.gpus)}"


@dataclass
class Plan:
    """The commands of a launch. `batch` has TRL's batch keys as they follow from prompts_per_step."""

    recipe: Recipe
    layout: str
    processes: int
    batch: dict
    trainer: Command
    server: Command | None = None
    url: str = ""
    watcher: Command | None = None

    def __str__(self) -> str:
        processes = f"{count(self.processes, 'training process')} on {self.trainer.where}"
        generator = f"; completions by {self.generator}" if self.recipe.sft is None else ""
        lines = [f"{self.layout and f'layout {self.layout}: '}{processes}{generator}"]
        if self.batch:
            lines.append("each process: " + ", ".join(f"{key} {value}" for key, value in self.batch.items()))
        lines += [f"server:  {self.server}"] if self.server else []
        lines += [f"trainer: {self.trainer}"]
        return "\n".join([*lines, f"watcher: {self.watcher}"] if self.watcher else lines)

    @property
    def generator(self) -> str:
        given = self.recipe.trainer
        if self.server:
            return f"a vLLM server on {self.server.where}"
        if not given.get("use_vllm"):
            return "transformers"
        elsewhere = given.get("vllm_server_base_url") or given.get("vllm_server_host")
        return f"the vLLM server at {elsewhere}" if given.get("vllm_mode") == "server" else "vLLM, colocated"


def outline(plan: Plan) -> str:
    """What a dry run adds to the plan: data, rewards, batch, steps and run folder. Nothing of the model is read, so
    problems that `max_prompt_tokens` drops are counted."""
    recipe = plan.recipe
    given, spec = recipe.trainer, recipe.eval
    parts = load_parts(recipe.datasets, recipe.template, None, recipe.eval_datasets)
    problems = len(mix_parts(parts, recipe.datasets, given.get("seed", 42)))
    moments = ["before and after"] * spec.before_after + [f"every {spec.every} steps"] * bool(spec.every)
    moments += ["at each checkpoint"] * bool(plan.watcher)
    held_out = ", ".join(one.title for one in recipe.eval_datasets)
    steps = given["max_steps"] if given.get("max_steps", -1) > 0 else steps_of(recipe, problems, plan.processes)
    lines = [
        f"model:   {recipe.model['model_name_or_path']}{', LoRA' if recipe.model.get('use_peft') else ''}",
        *(f"data:    {part}" for part in parts),
        f"held out: {held_out}, evaluated {', '.join(moments)}" if moments else "no evaluation",
    ]
    if recipe.sft is None:
        rewards = ", ".join(f"{one.name} (weight {one.weight:g})" for one in recipe.rewards)
        batch = describe_batch(batch_of(recipe, plan.processes), plan.processes, problems, recipe.rounds)
        lines += [f"rewards: {rewards}", batch]
    exists = " (exists)" if recipe.output_dir.exists() else ""
    return "\n".join([*lines, f"{'optimizer steps':<30}{steps:>6,}", f"run folder: {recipe.output_dir}{exists}"])


def plan_here(options: argparse.Namespace) -> Plan:
    """The plan of `train` and `sft`: the processes are those that this one belongs to."""
    recipe = load_recipe(options.words, "SFT" if options.verb == "sft" else "GRPO")
    check_machine(recipe)
    gpus = None if recipe.trainer.get("use_cpu") else visible_gpus() or None
    batch = batch_arguments(recipe.trainer, recipe.prompts_per_step, world_size()) if recipe.sft is None else {}
    command = Command("grpo-math", [], [options.verb, *options.words])
    command.gpus = gpus
    return Plan(recipe, "", world_size(), batch, command)


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan for the options of `launch`. Raises UserError for what cannot work."""
    layout = read_layout(options.layout)
    recipe = load_recipe(options.words)
    second = SERVER if serves_itself(recipe, layout) else layout.second
    added = layout.keys(recipe) + (keys_with_watcher(recipe) if second == EVALUATION else [])
    words = [*options.words, *added]
    recipe = load_recipe(words) if added else recipe
    given = recipe.trainer
    gpus = None if given.get("use_cpu") else visible_gpus()
    serving = given.get("vllm_tensor_parallel_size", 1) if second else 0
    at_once(
        lambda: check_nodes(options, layout, second == SERVER),
        lambda: share_gpus(options, layout, gpus, serving, second),
        # CUDA is not asked where there are GPUs: it would take memory of the first one for as long as the launch lasts
        lambda: check_machine(recipe) if gpus == [] else check_hub(recipe),
        bool(given.get("use_vllm") and gpus != []) and (lambda: check_vllm(given)),  # else check_machine does
        lambda: check_deepspeed(layout),
        instead=WORKS_HERE if gpus == [] else "",
    )
    local, training, others = share_gpus(options, layout, gpus, serving, second)
    processes = local * (options.nodes or 1)
    batch = batch_arguments(given, recipe.prompts_per_step, processes) if recipe.sft is None else {}
    if given.get("use_vllm") and given.get("vllm_mode") != "server":
        check_parallel(recipe.keys, processes)
    module = "grpo_math.train" if recipe.sft is None else "grpo_math.sft"
    words = [*accelerate_arguments(options, layout, processes), "-m", module, *words]
    environment = {"GRPO_MATH_PROCESSES": str(processes), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE)}
    if gpus is None and layout.config["distributed_type"] != "DEEPSPEED":
        environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}  # no run resumes on its "cpu:0"
    if gpus is not None:
        environment["GRPO_MATH_GPUS"] = str(processes + len(others or ()))  # for the cost of the run
    if layout.offloads:  # launchers or a colocated vLLM would set one thread
        environment |= threads_of_each(local)
    accelerate = [sys.executable, "-m", "grpo_math.launch.accelerated"]
    trainer = Command("accelerate launch", accelerate, words, environment, training)
    plan = Plan(recipe, layout.name, processes, batch, trainer)
    if second == SERVER:
        add_server(plan, others)
    if second == EVALUATION:
        evaluate = [sys.executable, "-m", "grpo_math", "evaluate"]
        plan.watcher = Command("grpo-math evaluate", evaluate, ["--watch", str(recipe.output_dir)], gpus=others)
        if "WANDB_MODE" not in os.environ:
            trainer.environment["WANDB_MODE"] = "shared"  # two processes write to one run
    return plan


def threads_of_each(processes: int) -> dict[str, str]:
    """An equal part of this machine's cores for each of the processes, where the environment does not say."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}


def keys_with_watcher(recipe: Recipe) -> list[str]:
    """The trainer's further keys while another process evaluates: it saves as often as it would have evaluated."""
    if not recipe.eval_datasets:
        raise UserError("--layout: dual_gpu_eval evaluates every checkpoint: name problems, eval: {datasets: gsm8k}")
    if recipe.eval.best:
        raise UserError("eval.best: the evaluation process of dual_gpu_eval keeps no best model: leave it out")
    if recipe.eval.every is None:
        return []
    steps = [] if "save_steps" in recipe.trainer else ["--save_steps", str(recipe.eval.every)]
    return ["--eval.every", "null", *steps]


def serves_itself(recipe: Recipe, layout: Layout) -> bool:
    """Whether this launch starts a vLLM server: for the layout dual_gpu, and for `vllm_mode: server` without a URL."""
    given = recipe.trainer
    elsewhere = {"vllm_server_base_url", "vllm_server_host"} & given.keys()
    if layout.second != SERVER:
        return bool(given.get("use_vllm") and given.get("vllm_mode") == "server" and not elsewhere)
    if elsewhere:
        raise UserError(
            f"{elsewhere.pop()}: the layout {layout.name} starts its own server: leave it out, or use single_gpu"
        )
    if recipe.sft is not None:
        raise UserError(f"--layout: SFT does not generate, {layout.name} is for GRPO: use single_gpu")
    other = "cpu" if given.get("use_cpu") else "single_gpu"
    if given.get("use_vllm") is False:
        raise UserError(
            f"use_vllm: false, but the layout {layout.name} generates with vLLM: leave it out, or use {other}"
        )
    if given.get("use_cpu") and find_spec("vllm") is None:
        raise UserError(f"--layout: {layout.name} generates with vLLM, which is not installed here: use {other}")
    return True


def check_deepspeed(layout: Layout) -> None:
    if layout.config["distributed_type"] == "DEEPSPEED" and find_spec("deepspeed") is None:
        fix = 'pip install -e ".[deepspeed]" -c constraints.txt, or use fsdp2 (without GPUs: multi_gpu)'
        raise UserError(f"--layout: {layout.name} needs DeepSpeed, which is not installed: {fix}")


def check_nodes(options: argparse.Namespace, layout: Layout, serves: bool) -> None:
    nodes = options.nodes or 1
    if options.nodes is None and layout.config.get("num_machines", 1) > 1:
        raise UserError(f"--layout: {layout.name} is for several machines: set their number with --nodes")
    if nodes == 1:
        return
    if layout.single:
        raise UserError(f"--nodes: the layout {layout.name} is for one process: use multi_node, zero3 or fsdp2")
    if serves:
        raise UserError(
            "--nodes: start the server with grpo-math serve, and give --vllm_server_base_url to every machine"
        )
    if options.main_process_ip is None:
        raise UserError("--nodes: give --main_process_ip too, the address of the first training machine")
    if node_rank(options) >= nodes:
        raise UserError(f"--node_rank: {node_rank(options)} of {nodes} machines: the ranks are 0 to {nodes - 1}")


def node_rank(options: argparse.Namespace) -> int:
    return int(os.environ.get("SLURM_NODEID", 0)) if options.node_rank is None else options.node_rank


def share_gpus(
    options: argparse.Namespace, layout: Layout, gpus: list[str] | None, serving: int, second: str | None
) -> tuple[int, list[str] | None, list[str] | None]:
    """The number of training processes on this machine, their GPUs, and those of `second` (both None on a CPU)."""
    wanted = options.num_processes
    if layout.single and wanted not in (None, 1):
        raise UserError(f"--num_processes: the layout {layout.name} is for one process: use multi_gpu")
    if gpus is None:
        return 1 if layout.single else wanted or 2, None, None
    left = len(gpus) - serving
    local = 1 if layout.single else wanted or max(left, 1)
    least = 2 if layout.config["distributed_type"] == "MULTI_GPU" and (options.nodes or 1) == 1 else 1
    if max(local, least) > left:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = without_cuda() if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        wants = f"{max(local, least)} for training" + (f" and {serving} for the {second}" if second else "")
        smaller = "--layout cpu" if not gpus else "a smaller layout" if layout.single else "single_gpu"
        raise UserError(f"--layout: {layout.name} needs GPUs, {wants}; visible are {len(gpus)}{seen}: use {smaller}")
    return local, gpus[:local], gpus[local : local + serving]


def without_cuda() -> str:
    """That PyTorch sees no GPU whatever the machine has, for a message; empty where it is built for CUDA."""
    import torch

    return "" if torch.version.cuda else f" (PyTorch {torch.__version__} is built without CUDA)"


def accelerate_arguments(options: argparse.Namespace, layout: Layout, processes: int) -> list[str]:
    nodes = options.nodes or 1
    words = ["--config_file", str(layout.file), "--num_processes", str(processes)]
    if layout.single:
        return words
    words += ["--num_machines", str(nodes), "--machine_rank", str(node_rank(options) if nodes > 1 else 0)]
    if nodes > 1:
        words += ["--main_process_ip", str(options.main_process_ip)]
    return [*words, "--main_process_port", str(options.main_process_port or (29500 if nodes > 1 else free_port()))]


def add_server(plan: Plan, gpus: list[str] | None) -> None:
    """A server on free ports of this machine, and the trainer's keys that name them."""
    given = plan.recipe.trainer
    port = given.get("vllm_server_port") or free_port()
    check_port(port, "vllm_server_port")
    group = given.get("vllm_group_port") or free_port()
    check_port(group, "vllm_group_port")
    plan.url = f"http://{LOOPBACK}:{port}"
    if port == group:
        raise UserError(f"vllm_group_port: {group} is also vllm_server_port: leave both out, or set two ports")
    words = server_words(plan.recipe.keys, plan.recipe.engine, needed_window(plan.recipe), LOOPBACK, port)
    plan.server = Command("vllm serve", PROGRAM, words, ENVIRONMENT | {"VLLM_HOST_IP": LOOPBACK}, gpus)
    plan.trainer.environment["VLLM_HOST_IP"] = LOOPBACK
    plan.trainer.words += ["--vllm_server_base_url", plan.url, "--vllm_group_port", str(group)]
