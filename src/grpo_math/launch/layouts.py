"""Layouts: shipped accelerate configs or the user's own."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import yaml

from grpo_math.errors import UserError, reason_of
from grpo_math.recipe.file import shipped
from grpo_math.recipe.recipe import Recipe

SERVER, EVALUATION = "vLLM server", "evaluation"
SECOND = {"dual_gpu": SERVER, "dual_gpu_eval": EVALUATION}  # shipped layouts that use a GPU for more than training


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
    def strategy(self) -> str:
        """How its processes hold the model: fsdp, zero0 to zero3, or ddp, also with one process."""
        kind, deepspeed = self.config["distributed_type"], self.config.get("deepspeed_config") or {}
        return {"FSDP": "fsdp", "DEEPSPEED": f"zero{deepspeed.get('zero_stage', 2)}"}.get(kind, "ddp")

    @property
    def offloads(self) -> bool:
        """Whether the CPU does the optimizer's steps."""
        deepspeed, fsdp = self.config.get("deepspeed_config") or {}, self.config.get("fsdp_config") or {}
        return deepspeed.get("offload_optimizer_device") == "cpu" or fsdp.get("fsdp_offload_params") is True

    def processes(self, options: argparse.Namespace) -> int:
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
        text = path.read_text()
        config = yaml.safe_load(text)
    except OSError:
        known = ", ".join(sorted(file.stem for file in configs.glob("*.yaml")))
        raise UserError(f"--layout: unknown layout {name}: use one of {known}, or the path of your own .yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--layout: {path} is not YAML ({reason_of(error)})") from None
    missing = {"distributed_type", "num_processes"} - (config if isinstance(config, dict) else {}).keys()
    if missing:
        raise UserError(f"--layout: {path} has no {', '.join(sorted(missing))}: start from one of {configs}")
    second = [use for known, use in SECOND.items() if text == (configs / f"{known}.yaml").read_text()]
    return Layout(path.stem, path, config, *second)
