"""Which program of a launch runs where: the accelerate config, the processes, and a share of the GPUs for each side."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_math.errors import UserError
from grpo_math.generation.vllm_engine import check_parallel, check_vllm, free_port
from grpo_math.generation.vllm_server import (
    ENVIRONMENT,
    LOOPBACK,
    check_port,
    needed_window,
    program,
    server_words,
    visible_gpus,
)
from grpo_math.recipe.batch import batch_arguments, count
from grpo_math.recipe.recipe import Recipe, load_recipe

CONFIGS = Path(__file__).parents[3] / "accelerate_configs"
PATIENCE = 600  # seconds that torch's elastic agent leaves its workers for a last checkpoint, when asked to end
OPTIONS = {  # of a launch; those that are numbers, with the least each may be
    "layout": None,
    "num_processes": 1,
    "nodes": 1,
    "node_rank": 0,
    "main_process_ip": None,
    "main_process_port": 1,
}


def parse(argv: list[str]) -> tuple[dict, list[str], bool]:
    """Our options (None where not given), the trainer's arguments, and whether this is a dry run."""
    options, arguments, dry_run = dict.fromkeys(OPTIONS), [], False
    words = list(argv)
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if word in ("--dry-run", "--dry_run"):
            dry_run = True
        elif not word.startswith("--") or name not in OPTIONS:
            arguments.append(word)
        elif not words or words[0].startswith("--"):
            raise UserError(f"{word}: want a value after it")
        else:
            options[name] = number(name, words.pop(0))
    options["layout"] = options["layout"] or "single_gpu"
    return options, arguments, dry_run


def number(name: str, value: str) -> int | str:
    least = OPTIONS[name]
    if least is None:
        return value
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"--{name}: want a whole number of {least} or more, got {value!r}")
    return int(value)


@dataclass
class Command:
    """One program to start: what a person would type for it, how it is started, what follows, what it has in its
    environment beyond ours, and its GPUs (None: it needs none)."""

    name: str
    program: list[str]
    words: list[str]
    environment: dict[str, str]
    gpus: list[str] | None

    def __post_init__(self):
        if self.gpus is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, self.name, shlex.join(self.words)])

    @property
    def where(self) -> str:
        return "the CPU" if self.gpus is None else f"GPU {', '.join(self.gpus)}"


@dataclass
class Plan:
    """What is started, and on which GPUs. `batch` holds TRL's batch keys as they follow from prompts_per_step."""

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
        lines = [f"layout {self.layout}: {processes}{generator}"]
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


def read_layout(name: str) -> tuple[Path, dict]:
    own = Path(name)
    path = own if own.suffix in (".yaml", ".yml") else CONFIGS / f"{name}.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except OSError:
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UserError(f"--layout: no layout {name}: use one of {known}, or the path of your own .yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"--layout: {path} is not YAML ({str(error).splitlines()[0]})") from None
    missing = {"distributed_type", "num_processes"} - (config if isinstance(config, dict) else {}).keys()
    if missing:
        raise UserError(f"--layout: {path} has no {', '.join(sorted(missing))}: start from one of {CONFIGS}")
    return path, config


def make_plan(options: dict, arguments: list[str]) -> Plan:
    """Everything that can be known before anything is started. Raises UserError for what would not work."""
    file, config = read_layout(options["layout"])
    if config.get("use_cpu"):
        arguments = [*arguments, "--use_cpu", "true"]
    recipe = load_recipe(arguments)
    if serves := serves_itself(recipe, file.stem):
        arguments = [*arguments, "--use_vllm", "true", "--vllm_mode", "server"]
        recipe = load_recipe(arguments)
    watches = file.stem == "dual_gpu_eval"
    if watches:
        arguments += leave_to_watcher(recipe)
        recipe = load_recipe(arguments)
    if recipe.trainer.get("use_vllm"):
        check_vllm()
    check_nodes(options, config, serves)
    gpus = None if recipe.trainer.get("use_cpu") else visible_gpus()
    serving = recipe.trainer.get("vllm_tensor_parallel_size", 1) if serves or watches else 0
    local, training, others = share_gpus(options, config, gpus, serving)
    processes = local * (options["nodes"] or 1)
    batch = {}
    if recipe.sft is None:
        batch = batch_arguments(recipe.trainer, recipe.prompts_per_step, processes)
    if recipe.trainer.get("use_vllm") and recipe.trainer.get("vllm_mode") != "server":
        check_parallel(recipe, processes)
    words = accelerate_arguments(file, options, config, processes)
    words += ["-m", "grpo_math.train" if recipe.sft is None else "grpo_math.sft", *arguments]
    environment = trainer_environment(config, processes, on_cpu=gpus is None)
    if gpus is not None:
        environment["GRPO_MATH_GPUS"] = str(processes + len(others))  # what the run costs
    accelerate = [sys.executable, "-m", "grpo_math.launch.accelerated"]
    plan = Plan(
        recipe, file.stem, processes, batch, Command("accelerate launch", accelerate, words, environment, training)
    )
    if serves:
        add_server(plan, others)
    if watches:
        words = ["--watch", str(recipe.output_dir)]
        program = [sys.executable, "-m", "grpo_math", "evaluate"]
        plan.watcher = Command("grpo-math evaluate", program, words, {}, others)
        if "WANDB_MODE" not in os.environ:
            plan.trainer.environment["WANDB_MODE"] = "shared"  # two processes write to one run
    return plan


def leave_to_watcher(recipe: Recipe) -> list[str]:
    """The trainer's further keys where a process beside it evaluates: it saves as often as it would have evaluated."""
    if not recipe.eval_datasets:
        raise UserError("--layout: dual_gpu_eval evaluates every checkpoint: name problems, eval: {datasets: gsm8k}")
    if recipe.eval.best:
        raise UserError("eval.best: the evaluation beside a training (dual_gpu_eval) keeps no best model: leave it out")
    if recipe.eval.every is None:
        return []
    steps = [] if "save_steps" in recipe.trainer else ["--save_steps", str(recipe.eval.every)]
    return ["--eval.every", "null", *steps]


def check_nodes(options: dict, config: dict, serves: bool) -> None:
    nodes = options["nodes"]
    if nodes is None and config.get("num_machines", 1) > 1:
        raise UserError(f"--layout: {options['layout']} is for several machines: say how many with --nodes")
    if (nodes or 1) == 1:
        return
    if config["distributed_type"] == "NO":
        raise UserError(f"--nodes: the layout {options['layout']} is for one process: use multi_node, zero3 or fsdp2")
    if serves:
        raise UserError(
            "--nodes: start the server with grpo-math serve, and give --vllm_server_base_url to every machine"
        )
    if options["main_process_ip"] is None:
        raise UserError("--nodes: give --main_process_ip too, the address of the first training machine")
    if node_rank(options) >= nodes:
        raise UserError(f"--node_rank: {node_rank(options)} of {nodes} machines: the ranks are 0 to {nodes - 1}")


def node_rank(options: dict) -> int:
    return int(os.environ.get("SLURM_NODEID", 0)) if options["node_rank"] is None else options["node_rank"]


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
    name, wanted = options["layout"], options["num_processes"]
    single = config["distributed_type"] == "NO"
    if single and wanted not in (None, 1):
        raise UserError(f"--num_processes: the layout {name} is for one process: use multi_gpu")
    if gpus is None:
        return 1 if single else wanted or 2, None, None
    left = len(gpus) - serving
    local = 1 if single else wanted or max(left, 1)
    least = 2 if config["distributed_type"] == "MULTI_GPU" and (options["nodes"] or 1) == 1 else 1
    if max(local, least) > left:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        beside = "evaluation" if name == "dual_gpu_eval" else "vLLM server"
        wants = f"{max(local, least)} for training" + (f" and {serving} for the {beside}" if serving else "")
        smaller = "--layout cpu" if not gpus else "a smaller layout" if single else "single_gpu"
        raise UserError(f"--layout: {name} wants GPUs, {wants}; visible are {len(gpus)}{seen}: use {smaller}")
    return local, gpus[:local], gpus[local : local + serving]


def trainer_environment(config: dict, processes: int, on_cpu: bool) -> dict[str, str]:
    environment = {"GRPO_MATH_PROCESSES": str(processes), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE)}
    if on_cpu and config["distributed_type"] != "DEEPSPEED":  # with cpu:0, accelerate's own name, nothing can resume
        environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    return environment


def accelerate_arguments(file: Path, options: dict, config: dict, processes: int) -> list[str]:
    nodes, port = options["nodes"] or 1, options["main_process_port"]
    words = ["--config_file", str(file), "--num_processes", str(processes)]
    if config["distributed_type"] == "NO":
        return words
    words += ["--num_machines", str(nodes), "--machine_rank", str(node_rank(options) if nodes > 1 else 0)]
    if nodes > 1:
        words += ["--main_process_ip", options["main_process_ip"]]
    return [*words, "--main_process_port", str(port or (29500 if nodes > 1 else free_port()))]


def add_server(plan: Plan, gpus: list[str] | None) -> None:
    """A server on free ports of this machine, and a trainer that knows them."""
    given = plan.recipe.trainer
    port = given.get("vllm_server_port") or free_port()
    check_port(port, "vllm_server_port")
    group = given.get("vllm_group_port") or free_port()
    check_port(group, "vllm_group_port")
    plan.url = f"http://{LOOPBACK}:{port}"
    if port == group:
        raise UserError(f"vllm_group_port: {group} is vllm_server_port too: leave both out, or give two")
    words = server_words(plan.recipe, needed_window(plan.recipe), LOOPBACK, port)
    plan.server = Command("vllm serve", program(), words, ENVIRONMENT | {"VLLM_HOST_IP": LOOPBACK}, gpus)
    plan.trainer.environment["VLLM_HOST_IP"] = LOOPBACK
    plan.trainer.words += ["--vllm_server_base_url", plan.url, "--vllm_group_port", str(group)]
