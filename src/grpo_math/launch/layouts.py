"""Layouts: shipped accelerate configs or the user's own, and the options of a launch."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_math.checks.memory import SHARDED
from grpo_math.errors import UserError
from grpo_math.recipe.file import shipped
from grpo_math.recipe.recipe import Recipe

SERVER, EVALUATION = "vLLM server", "evaluation"
SECOND = {"dual_gpu": SERVER, "dual_gpu_eval": EVALUATION}  # shipped layouts that use a GPU for more than training


@dataclass(frozen=True)
class Options:
    """The options of a launch that are no keys of a recipe; None where not given."""

    layout: str = "single_gpu"
    num_processes: int | None = None  # on this machine
    nodes: int | None = None
    node_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None


@dataclass(frozen=True)
class Layout:
    """An accelerate config. `second` is what runs on GPUs of its own: SERVER, EVALUATION, or nothing."""

    name: str
    file: Path
    config: dict
    second: str | None = None

    @property
    def single(self) -> bool:
        """Whether it is for one process."""
        return self.config["distributed_type"] == "NO"

    @property
    def sharded(self) -> tuple[str, ...]:
        """What its processes shard: everything with FSDP, otherwise by DeepSpeed's ZeRO stage."""
        fsdp, deepspeed = self.config["distributed_type"] == "FSDP", self.config.get("deepspeed_config") or {}
        return SHARDED[3 - (3 if fsdp else deepspeed.get("zero_stage", 0)) :]

    def processes(self, options: Options) -> int:
        """The training processes of all machines, as far as that follows from the options and the config."""
        return (options.num_processes or self.config["num_processes"]) * (options.nodes or 1)

    def keys(self, recipe: Recipe) -> list[str]:
        """The recipe keys that it sets, as words of a command line."""
        words = ["--use_cpu", "true"] if self.config.get("use_cpu") else []
        if self.second == SERVER and recipe.sft is None and recipe.trainer.get("use_vllm") is not False:
            words += ["--use_vllm", "true", "--vllm_mode", "server"]
        return words


def read_layout(name: str) -> Layout:
    """A shipped layout by its name, or the accelerate config at a path."""
    own = name.endswith((".yaml", ".yml"))
    configs = shipped("accelerate_configs")
    path = Path(name) if own else configs / f"{name}.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except OSError:
        known = ", ".join(sorted(file.stem for file in configs.glob("*.yaml")))
        raise UserError(f"--layout: no layout {name}: use one of {known}, or the path of your own .yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"--layout: {path} is not YAML ({str(error).splitlines()[0]})") from None
    missing = {"distributed_type", "num_processes"} - (config if isinstance(config, dict) else {}).keys()
    if missing:
        raise UserError(f"--layout: {path} has no {', '.join(sorted(missing))}: start from one of {configs}")
    return Layout(path.stem if own else name, path, config, None if own else SECOND.get(name))


NUMBERS = {"num_processes": 1, "nodes": 1, "node_rank": 0, "main_process_port": 1}


def parse(argv: list[str]) -> tuple[Options, list[str], bool]:
    """Our options, the trainer's arguments, and whether this is a dry run."""
    options: dict = {}
    arguments, words, dry_run = [], list(argv), False
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if word in ("--dry-run", "--dry_run"):
            dry_run = True
        elif not word.startswith("--") or name not in Options.__dataclass_fields__:
            arguments.append(word)
        elif not words or words[0].startswith("--"):
            raise UserError(f"{word}: want a value after it")
        else:
            options[name] = words.pop(0)
            if name in NUMBERS:
                if not options[name].isdecimal() or int(options[name]) < NUMBERS[name]:
                    raise UserError(f"--{name}: want a whole number of {NUMBERS[name]} or more, got {options[name]!r}")
                options[name] = int(options[name])
    return Options(**options), arguments, dry_run
