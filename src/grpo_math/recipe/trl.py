"""Keys read from source text, so that nothing heavy is imported and the installed version decides.

TRL's and transformers' keys are the fields of GRPOConfig, SFTConfig and ModelConfig, with type, default and help; the
parameters of people's own functions come from their `def`.
"""

import ast
import importlib.util
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from grpo_math.errors import UserError

TYPES: dict[str, Any] = {
    "None": None, "bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "Mapping": dict,
    "Any": Any, "Literal": Literal,
}  # fmt: skip
DEFAULTS = {  # ours, where TRL's differ
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # transformers would log the mean of earlier losses in place of a NaN
    "report_to": "none",
    "hub_strategy": "end",  # any other pushes the whole run folder
    "disable_tqdm": True,
}
LIMITS: tuple[tuple[dict[str, Any], str], ...] = (  # what TRL checks only after the model is loaded, or not at all
    ({"gt": 0}, "num_train_epochs logging_steps save_steps"),
    ({"ge": 0}, "weight_decay adam_epsilon max_grad_norm warmup_steps neftune_noise_alpha dataloader_num_workers"),
    ({"ge": 0}, "top_k epsilon_high"),
    ({"gt": 1}, "delta"),  # up to 1 it would take the gradient from every positive advantage
    ({"ge": 1}, "num_iterations steps_per_generation generation_batch_size per_device_train_batch_size lora_r"),
    ({"ge": 1}, "gradient_accumulation_steps max_completion_length save_total_limit ref_model_sync_steps ddp_timeout"),
    ({"ge": 1}, "vllm_max_model_length vllm_tensor_parallel_size dataloader_prefetch_factor torch_empty_cache_steps"),
    ({"ge": 1}, "pad_to_multiple_of lora_alpha max_tool_calling_iterations"),
    ({"gt": 0}, "sapo_temperature_neg sapo_temperature_pos off_policy_mask_threshold"),
    ({"gt": 0}, "vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg"),
    ({"ge": 2}, "num_generations"),
    ({"ge": 0, "le": 1}, "learning_rate min_p label_smoothing_factor ref_model_mixup_alpha top_entropy_quantile"),
    ({"ge": 0, "lt": 1}, "adam_beta1 adam_beta2 lora_dropout"),
    ({"ge": 0, "le": 1e3}, "beta epsilon"),
    ({"ge": 1e-3, "le": 1}, "top_p"),
    ({"ge": 1e-3, "le": 100}, "temperature repetition_penalty"),
    ({"gt": 0, "le": 1}, "vllm_gpu_memory_utilization"),
    ({"ge": 0, "lt": 2**32}, "seed data_seed"),
)
RANGES = {name: limits for limits, names in LIMITS for name in names.split()}
UNCHANGED: dict[str, tuple] = {  # keys that change what is sampled from, by the values with which they do not
    "top_p": (1.0,), "top_k": (0, -1), "min_p": (0.0,), "repetition_penalty": (1.0,), "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,), "min_tokens": (0,), "logit_bias": ({},), "bad_words": ([],), "allowed_token_ids": (),
    "structured_outputs": (), "top_h": (), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,), "no_repeat_ngram_size": (0,), "min_length": (0,), "min_new_tokens": (0,),
    "bad_words_ids": ([],), "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (), "guidance_scale": (1.0,), "watermarking_config": (),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key of TRL's: its type, default, and the first sentence of its help."""

    type: Any
    default: Any = None
    help: str = ""


@cache
def trl_keys(kind: str) -> tuple[dict[str, Key], dict[str, Key]]:
    """The keys of GRPOConfig or SFTConfig (with TrainingArguments) by `kind`, GRPO or SFT, and those of ModelConfig."""
    trl, transformers = installed_folder("trl") / "trainer", installed_folder("transformers")
    trainer = {
        **class_keys(transformers / "training_args.py", "TrainingArguments"),
        **class_keys(trl / "base_config.py", "_BaseConfig"),
        **class_keys(trl / f"{kind.lower()}_config.py", f"{kind}Config"),
    }
    return trainer, class_keys(trl / "model_config.py", "ModelConfig")


def installed_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {name} is not installed: pip install {name}")
    return Path(spec.submodule_search_locations[0])


def class_fields(path: Path, name: str) -> dict[str, ast.AnnAssign]:
    """The annotated fields of a dataclass, in source order."""
    body = next(node.body for node in parsed(path).body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: node for node in fields if isinstance(node.target, ast.Name)}


@cache
def class_keys(path: Path, name: str) -> dict[str, Key]:
    return {key: field_key(node) for key, node in class_fields(path, name).items()}


def field_key(node: ast.AnnAssign) -> Key:
    """`name: type = field(default=..., metadata={"help": ...})`; a default that is computed counts as None."""
    types = defaultdict(lambda: str, TYPES)  # TRL's enums, which are not among them, are text in a recipe
    kind = eval(ast.unparse(node.annotation), {"__builtins__": {}}, types)
    given = {word.arg: word.value for word in node.value.keywords} if isinstance(node.value, ast.Call) else {}
    metadata = given.get("metadata")
    entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    told = {constant(key): constant(value) for key, value in entries}
    if kind is str and told.get("choices"):
        kind = Literal[tuple(told["choices"])]
    first = re.split(r"(?<=[a-z`)][.]) ", " ".join((told.get("help") or "").replace("%%", "%").split()))[0]
    return Key(kind, constant(given.get("default")), first)


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None


def function_types(path: Path, name: str) -> Mapping[str, Any] | None:
    """The parameters of a top-level function with their types, or None when the file defines none of that name.

    A type that is not built from None, bool, int, float, str, list and dict counts as any.
    """
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return {argument.arg: own_type(argument.annotation) for argument in arguments}
    return None


def own_type(annotation: ast.expr | None) -> Any:
    allowed = ast.Name | ast.Constant | ast.Subscript | ast.BinOp | ast.BitOr | ast.Tuple | ast.Load
    try:
        if annotation is None or any(not isinstance(node, allowed) for node in ast.walk(annotation)):
            return Any
        return eval(ast.unparse(annotation), {"__builtins__": {}}, TYPES)
    except (NameError, TypeError):  # a type that is none of these, or no type, such as `1 | 2`
        return Any


def assigns(path: Path, name: str) -> bool:
    """Whether something in the file is given that name, as an instance or a class is."""
    return any(
        node.id == name and isinstance(node.ctx, ast.Store)
        if isinstance(node, ast.Name)
        else isinstance(node, ast.ClassDef) and node.name == name
        for node in ast.walk(parsed(path))
    )


def parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not Python ({error.msg})") from None


def changed_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys, with their values, with which another distribution is sampled from than the policy's at its
    temperature: `{"top_p": 0.9, "generation_kwargs.min_p": 0.1}`."""
    more = given.get("generation_kwargs") or {}
    asked = {key: given.get(key) for key in UNCHANGED if key not in more}
    asked |= {f"generation_kwargs.{key}": more[key] for key in UNCHANGED if key in more}
    known = {key: UNCHANGED[key.rpartition(".")[2]] for key in asked}
    return {key: value for key, value in asked.items() if value is not None and value not in known[key]}
