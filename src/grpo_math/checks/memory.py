"""An estimate of the memory that a training needs on each GPU, in bytes, from the model's config alone.

A step has three phases, and the largest counts: generation (weights and key-value cache), the passes (weights,
optimizer, activations) and the update (weights, gradients, optimizer). ZeRO and FSDP shard what each process would
otherwise hold whole (Rajbhandari et al. 2020, arXiv:1910.02054, section 5). What a layer keeps for its backward pass is
counted tensor by tensor after Korthikanti et al. 2022 (arXiv:2205.05198, section 4), for attention that keeps no
scores. docs/performance.md compares it with real runs.
"""

import os
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UserError, one_line
from grpo_math.generation.vllm_server import UTILISATION
from grpo_math.models import ModelSource, trains_adapter, without_weights
from grpo_math.models.policy import changes_tied_weights
from grpo_math.recipe.recipe import Recipe, trainer_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4 = 0.5 + 4 / 64  # bytes per weight: 4 bits, and a float32 scale for every 64 weights
CONTEXT = 1.0 * GIB  # CUDA, its libraries and the gaps of the allocator, about
OPTIMIZERS = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 0}  # bytes per weight
TILE = (4096, 32768)  # tokens and vocabulary entries of the logits TRL holds at a time (trl/kernels/chunked_logprob.py)
SHARDED = ("weights", "gradients", "optimizer")  # by ZeRO-3 and FSDP
CARDS = (24, 40, 48, 80, 141)  # GB, as GPUs are sold


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. `linear` are the parameters that quantisation rounds, `trained` those with gradients."""

    parameters: int
    linear: int
    trained: int
    layers: int
    hidden: int
    intermediate: int
    query: int  # heads x head size
    key_value: int
    vocabulary: int


@dataclass(frozen=True)
class Setting:
    """What a recipe and its layout add: `length` is in tokens, `sequences` are generated at a time on a GPU."""

    weight_bytes: float
    mixed: bool  # float32 weights, 16-bit passes
    peft: bool
    linear_bytes: float | None  # per quantised weight
    checkpointing: bool
    reference: bool
    optimizer_bytes: int
    batch: int
    passes: int
    sequences: int
    length: int
    shards: dict[str, int] = field(default_factory=dict)  # processes that share the weights, gradients, optimizer
    vllm: float | None = None  # colocated: its share of the GPU
    sleeps: bool = False
    tensor_parallel: int = 1
    server: float | None = None  # vLLM's share of the server's GPUs

    @property
    def compute_bytes(self) -> float:
        return 2 if self.mixed else self.weight_bytes


def shape_of(config: "PretrainedConfig", recipe: Recipe) -> Shape:
    """The shape of the model of this config, built without weights."""
    import torch

    model = without_weights(config, recipe.trainer.get("trust_remote_code", False))
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and id(part) not in heads]
        linear = sum(part.weight.numel() for part in layers)
        trained = adapter_size(model, recipe) if trains_adapter(recipe.keys) else parameters
    text = config.get_text_config()
    attention = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or text.hidden_size // attention
    return Shape(
        parameters=parameters,
        linear=linear,
        trained=trained,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query=attention * head,
        key_value=(getattr(text, "num_key_value_heads", None) or attention) * head,
        vocabulary=text.vocab_size,
    )


def adapter_size(model: "PreTrainedModel", recipe: Recipe) -> int:
    from peft import get_peft_model
    from trl import ModelConfig, get_peft_config

    config: Any = ModelSource.of(recipe.keys).adapter or get_peft_config(ModelConfig(**recipe.model))
    config.inference_mode = False  # a saved adapter has true
    with one_line("use_peft: peft refuses it", "see lora_target_modules (TRL takes a list of one for a pattern)"):
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if absent := {name.rpartition(".")[2] for name in config.modules_to_save or ()} - names:
            raise UserError(f"lora_modules_to_save: the model has no {', '.join(sorted(absent))}: leave it out")
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if recipe.trainer.get("use_vllm") and changes_tied_weights(adapted):
        raise UserError(
            "lora_target_modules: the embedding and the head share their weights, and LoRA changes one of them: merged "
            "for vLLM, both would change, and completions be sampled from another model: leave them out, or use_vllm: "
            "false"
        )
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def setting_of(recipe: Recipe, dtype: str, batch: SimpleNamespace, prompt: int, shards: dict[str, int]) -> Setting:
    """`dtype` is that of the loaded weights, `batch` has TRL's batch keys, `prompt` is the longest prompt in tokens."""
    given, peft, sft = recipe.trainer, trains_adapter(recipe.keys), recipe.sft is not None
    colocated = given.get("use_vllm") and given.get("vllm_mode", "colocate") == "colocate"
    share = given.get("vllm_gpu_memory_utilization", 0.3) if colocated else None
    served = not sft and given.get("use_vllm") and not colocated
    generates_here = not sft and (colocated or not given.get("use_vllm"))
    return Setting(
        weight_bytes=BYTES[dtype],
        mixed=dtype == "float32" and trainer_dtype(given) != "float32",
        peft=peft,
        linear_bytes=NF4 if recipe.model.get("load_in_4bit") else 1 if recipe.model.get("load_in_8bit") else None,
        checkpointing=given.get("gradient_checkpointing", True),
        reference=bool(given.get("beta")) and not peft and not sft,
        optimizer_bytes=OPTIMIZERS.get(given.get("optim", ""), 2 * (4 if peft else BYTES[dtype])),
        batch=batch.per_device_train_batch_size,
        passes=batch.gradient_accumulation_steps,
        sequences=batch.per_device_train_batch_size * batch.steps_per_generation if generates_here else 0,
        length=given.get("max_length") or 1024 if sft else prompt + recipe.max_completion_length,  # TRL's default
        shards=shards,
        vllm=share,
        sleeps=bool(given.get("vllm_enable_sleep_mode", share is not None and share > 0.5)),
        tensor_parallel=given.get("vllm_tensor_parallel_size", 1),
        server=given.get("vllm_gpu_memory_utilization", UTILISATION) if served else None,
    )


def shards_here() -> tuple[str, ...]:
    """What the processes of this run shard, as accelerate tells them."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return SHARDED[3 - (3 if fsdp else int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0))) :]


def items(shape: Shape, setting: Setting) -> dict[str, float]:
    """Bytes by what they are for. Those of one phase do not add up with those of another: see `peak`."""
    whole = shape.parameters * setting.weight_bytes
    if setting.linear_bytes:
        whole = shape.linear * setting.linear_bytes + (shape.parameters - shape.linear) * 2
    weights, gradients, optimizer = (setting.shards.get(part, 1) for part in SHARDED)
    gathered = whole / shape.layers if weights > 1 else 0.0  # the layer in use
    adapter = 4 * shape.trained if setting.peft else 0.0
    return {
        "weights": whole / weights + gathered + adapter,
        "reference model": whole / weights if setting.reference else 0.0,
        "gradients": shape.trained * (4 if setting.peft else setting.weight_bytes) / gradients,
        "optimizer": shape.trained * setting.optimizer_bytes / optimizer,
        "16-bit copies of weights": 2 * shape.parameters / weights if setting.mixed and not setting.peft else 0.0,
        "activations": activations(shape, setting),
        "logits": logits(shape, setting),
        "key-value cache": cache(shape, setting),
        "buffers for the server": buffers(shape, setting),
    }


def activations(shape: Shape, setting: Setting) -> float:
    """What all layers keep for the backward pass; with gradient checkpointing their inputs, and one layer whole."""
    tokens, narrow = setting.batch * setting.length, setting.compute_bytes
    stream = 4 if setting.mixed else narrow  # the residual stream keeps the dtype of the weights
    norms = 2 * shape.hidden * (stream + 4)  # two norms: their input, and its float32
    attention = shape.hidden + 3 * shape.query + 4 * shape.key_value
    layer = norms + narrow * (attention + shape.hidden + 4 * shape.intermediate)
    if setting.checkpointing:
        return tokens * (shape.layers * shape.hidden * stream + 2 * layer)
    return tokens * shape.layers * layer


def logits(shape: Shape, setting: Setting) -> float:
    """A tile of logits, and the float32 gradient of the output embedding."""
    tokens, entries = min(setting.batch * setting.length, TILE[0]), min(shape.vocabulary, TILE[1])
    head = 0.0 if setting.peft else 4 * shape.vocabulary * shape.hidden
    return tokens * entries * setting.compute_bytes + head


def cache(shape: Shape, setting: Setting) -> float:
    """Keys and values of the sequences generated at a time, and the last logits. vLLM has its own share of the GPU."""
    per_token = 2 * shape.layers * shape.key_value * setting.compute_bytes
    return setting.sequences * (setting.length * per_token + 2 * 4 * shape.vocabulary)


def buffers(shape: Shape, setting: Setting) -> float:
    """In which weights go to a vLLM server, on the first trainer's GPU and on each of the server's: two, each full with
    the weight that exceeds 1 GiB (vllm/distributed/weight_transfer/packed_tensor.py). Gathered shards are a third."""
    if setting.server is None:
        return 0.0
    count = 3 if setting.shards.get("weights", 1) > 1 else 2
    largest = GIB + shape.vocabulary * shape.hidden * setting.weight_bytes
    return min(count * largest, (count - 1) * shape.parameters * setting.weight_bytes)


def held(parts: dict[str, float]) -> float:
    """What the trainer holds in every phase, in bytes, also while a colocated vLLM generates."""
    return parts["weights"] + parts["reference model"] + parts["optimizer"]


def peak(parts: dict[str, float], setting: Setting) -> float:
    """The largest phase, in bytes, without vLLM."""
    passing = held(parts) + parts["16-bit copies of weights"] + parts["activations"] + parts["logits"]
    passing += parts["gradients"] if setting.passes > 1 else 0.0  # those of the pass before
    generating = held(parts) + parts["buffers for the server"]
    if setting.vllm is None and setting.server is None:
        generating += parts["16-bit copies of weights"] + parts["key-value cache"]
    return max(passing, held(parts) + parts["gradients"], generating)


def verdict(shape: Shape, setting: Setting, gigabytes: int) -> str:
    """Whether a GPU of this size (in GB) has room: fits, tight (over 90 % of it), or does not fit."""
    size, parts = gigabytes * 1e9, items(shape, setting)
    needed = training = peak(parts, setting) + CONTEXT
    if setting.vllm is not None:
        engine = setting.vllm * size
        one_sequence = setting.length * 2 * shape.layers * shape.key_value * 2  # bytes of its 16-bit cache
        if engine < (2 * shape.parameters + one_sequence) / setting.tensor_parallel:
            return "does not fit"
        needed = max(training, held(parts) + CONTEXT + engine) if setting.sleeps else training + engine
    return "does not fit" if needed > size else "tight" if needed > 0.9 * size else "fits"


def knobs(shape: Shape, setting: Setting) -> list[tuple[str, float]]:
    """The recipe lines that would save most, each tried alone, with the bytes saved, largest first."""
    changes: dict[str, dict[str, Any]] = {
        "gradient_checkpointing: true": {"checkpointing": True},
        "per_device_train_batch_size: 1": {"batch": 1, "passes": max(2, setting.passes)},
        f"half the length ({setting.length // 2} tokens)": {"length": setting.length // 2},
        "optim: adamw_8bit": {"optimizer_bytes": min(2, setting.optimizer_bytes)},
        "dtype: bfloat16": {"weight_bytes": 2, "mixed": False, "optimizer_bytes": min(4, setting.optimizer_bytes)},
        "beta: 0": {"reference": False},
    }
    if not setting.peft:
        lora = {"peft": True, "reference": False, "optimizer_bytes": 8}
        changes |= {"use_peft: true": lora, "use_peft and load_in_4bit: true": lora | {"linear_bytes": NF4}}
    if not setting.shards:
        changes["--layout zero3 on 8 GPUs"] = {"shards": dict.fromkeys(SHARDED, 8)}
    now, saved = peak(items(shape, setting), setting), []
    small = replace(shape, trained=shape.parameters // 100)  # an adapter of rank 16 is about a hundredth of the model
    for key, change in changes.items():
        changed = replace(setting, **change)
        size = now - peak(items(small if "peft" in change else shape, changed), changed)
        saved += [(key, size)] if size > 0.05 * now else []
    return sorted(saved, key=lambda found: -found[1])[:4]
