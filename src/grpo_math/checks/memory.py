"""An estimate of the memory that a training needs on each GPU, in bytes, from the model's config alone.

A step has phases, and the largest counts: generation (weights and key-value cache), the reference's pass, the passes
(weights, optimizer, activations) and the update (weights, gradients, optimizer). What a process holds of the weights,
gradients and optimizer states follows from the strategy: the trained weights' own dtype, what is kept twice, and
what the processes shard (`Setting`; Rajbhandari et al. 2020, arXiv:1910.02054, section 5). What a layer keeps for its
backward pass is counted tensor by tensor after Korthikanti et al. 2022 (arXiv:2205.05198, section 4), for attention
that keeps no scores. Nothing is counted as offloaded to the CPU. docs/performance.md compares it with real runs.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UserError, one_line
from grpo_math.generation.vllm_server import UTILISATION
from grpo_math.models import ModelSource, for_text, freeze_vision, trains_adapter, without_weights
from grpo_math.models.policy import changes_tied_weights
from grpo_math.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4 = 0.5 + 4 / 64  # bytes per weight: 4 bits, and a float32 scale for every 64 weights
CONTEXT = 1.0 * GIB  # CUDA, its libraries and the gaps of the allocator, about
MOMENTS = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 0}  # bytes per weight
TILE = (4096, 32768)  # tokens and vocabulary entries of the logits TRL holds at a time (trl/kernels/chunked_logprob.py)
SHARDED = ("weights", "gradients", "optimizer")
STRATEGIES = {"zero1": SHARDED[2:], "zero2": SHARDED[1:], "zero3": SHARDED, "fsdp": SHARDED}  # ddp, zero0: nothing
BUCKET = 5 * 10**8  # gradients that DeepSpeed reduces at a time (reduce_bucket_size)
LIVE = 10**9  # weights that ZeRO-3 keeps gathered (stage3_max_live_parameters)
SUB_GROUP = 10**9  # weights of a process that ZeRO-3 updates at a time (sub_group_size)
CARDS = (16, 24, 40, 48, 80, 141)  # GB, as GPUs are sold


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
    """What a recipe and its layout add: `length` is in tokens, `sequences` are generated at a time by transformers.

    With DDP a trained weight has the dtype it was loaded in, and the reducer holds a second copy of its gradient. With
    mixed precision accelerate makes it float32 under FSDP (accelerate/utils/fsdp_utils.py). DeepSpeed casts the whole
    model to the dtype of the passes, and has float32 weights of its own in the optimizer.
    """

    weight_bytes: float  # as loaded
    mixed: bool  # 16-bit passes, whatever dtype the weights have
    peft: bool
    linear_bytes: float | None  # per quantised weight
    checkpointing: bool
    reference: bool
    moment_bytes: int | None  # per trained weight; None is AdamW's, two in the dtype of what it updates
    batch: int
    passes: int
    sequences: int
    length: int
    strategy: str = "ddp"  # ddp, zero0 to zero3, or fsdp
    processes: int = 1
    vllm: float | None = None  # colocated: its share of the GPU
    sleeps: bool = False
    tensor_parallel: int = 1
    server: float | None = None  # vLLM's share of the server's GPUs

    def share(self, part: str) -> int:
        """Of how many processes each holds a share of this part of SHARDED."""
        return self.processes if part in STRATEGIES.get(self.strategy, ()) else 1

    @property
    def deepspeed(self) -> bool:
        return self.strategy.startswith("zero")

    @property
    def compute_bytes(self) -> float:
        return 2 if self.mixed else self.weight_bytes

    @property
    def frozen_bytes(self) -> float:
        return self.compute_bytes if self.deepspeed else self.weight_bytes

    @property
    def trained_bytes(self) -> float:
        """Of a trained weight; its gradient has the same dtype. Adapters are float32, on quantised weights bfloat16."""
        if self.deepspeed:
            return self.compute_bytes
        if self.linear_bytes:
            return 2
        return 4 if self.peft or (self.strategy == "fsdp" and self.mixed) else self.weight_bytes

    @property
    def optimizer_bytes(self) -> float:
        """Per trained weight: the moments, and with DeepSpeed the float32 weight."""
        own = 4 if self.deepspeed else 0
        return own + (2 * (own or self.trained_bytes) if self.moment_bytes is None else self.moment_bytes)


def shape_of(config: "PretrainedConfig", recipe: Recipe) -> Shape:
    """The shape of the model of this config, built without weights."""
    import torch

    model = without_weights(config, recipe.trainer.get("trust_remote_code", False))
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and id(part) not in heads]
        linear = sum(part.weight.numel() for part in layers)
        whole = sum(parameter.numel() for parameter in for_text(model))
        trained = adapter_size(model, recipe) if trains_adapter(recipe.keys) else whole
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
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
        freeze_vision(adapted)
    if recipe.trainer.get("use_vllm") and changes_tied_weights(adapted):
        raise UserError(
            "lora_target_modules: the embedding and the head share their weights, and LoRA changes only one: merged "
            "for vLLM, both would change, and vLLM would sample from another model: leave them out, or use_vllm: "
            "false"
        )
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def setting_of(
    recipe: Recipe, dtype: str, batch: SimpleNamespace, prompt: int, strategy: str, processes: int
) -> Setting:
    """`dtype` is that of the loaded weights, `batch` has TRL's batch keys, `prompt` is the longest prompt in tokens."""
    given, peft, sft = recipe.trainer, trains_adapter(recipe.keys), recipe.sft is not None
    colocated = given.get("use_vllm") and given.get("vllm_mode", "colocate") == "colocate"
    share = given.get("vllm_gpu_memory_utilization", 0.3) if colocated else None
    served = not sft and given.get("use_vllm") and not colocated
    generates_here = not sft and not given.get("use_vllm")
    return Setting(
        weight_bytes=BYTES[dtype],
        mixed=bool(given.get("fp16")) or given.get("bf16") in (None, True),
        peft=peft,
        linear_bytes=NF4 if recipe.model.get("load_in_4bit") else 1 if recipe.model.get("load_in_8bit") else None,
        checkpointing=given.get("gradient_checkpointing", True),
        reference=bool(given.get("beta")) and not peft and not sft,
        moment_bytes=MOMENTS.get(given.get("optim", "")),
        batch=batch.per_device_train_batch_size,
        passes=batch.gradient_accumulation_steps,
        sequences=batch.per_device_train_batch_size * batch.steps_per_generation if generates_here else 0,
        length=given.get("max_length") or 1024 if sft else prompt + recipe.max_completion_length,  # TRL's default
        strategy=strategy,
        processes=processes,
        vllm=share,
        sleeps=bool(given.get("vllm_enable_sleep_mode", share is not None and share > 0.5)),
        tensor_parallel=given.get("vllm_tensor_parallel_size", 1),
        server=given.get("vllm_gpu_memory_utilization", UTILISATION) if served else None,
    )


def items(shape: Shape, setting: Setting) -> dict[str, float]:
    """Bytes by what they are for. Those of one phase do not add up with those of another: see `peak`."""
    weights, gradients, optimizer = (setting.share(part) for part in SHARDED)
    trained = shape.trained * setting.trained_bytes
    frozen = (shape.parameters - (0 if setting.peft else shape.trained)) * setting.frozen_bytes
    rounded = 0.0
    if setting.linear_bytes:  # FSDP leaves rounded weights whole
        frozen, rounded = (shape.parameters - shape.linear) * 2, shape.linear * setting.linear_bytes
    autocast = setting.strategy == "ddp" and setting.mixed and setting.weight_bytes > 2 and not setting.peft
    whole = shape.parameters * setting.compute_bytes  # all of it gathered
    updated = min(shape.trained / optimizer, SUB_GROUP if setting.strategy == "zero3" else shape.trained)
    return {
        "weights": (frozen + trained) / weights + rounded,
        "gathered weights": gathered(shape, setting),
        "all weights gathered": whole if setting.strategy == "zero3" and gathers_all(setting) else 0.0,
        "reference model": shape.parameters * setting.frozen_bytes / weights if setting.reference else 0.0,
        "gathered reference model": whole if setting.reference and setting.strategy == "fsdp" else 0.0,
        "gradients": trained / gradients,
        "gradients in DDP's buckets": trained if setting.strategy == "ddp" and setting.processes > 1 else 0.0,
        "gradients in DeepSpeed's bucket": BUCKET * setting.compute_bytes if setting.deepspeed else 0.0,
        "gradients in float32": 4 * updated if setting.deepspeed else 0.0,
        "optimizer": shape.trained * setting.optimizer_bytes / optimizer,
        "16-bit copies of weights": 2 * shape.parameters if autocast else 0.0,
        "activations": activations(shape, setting),
        "logits": logits(shape, setting),
        "key-value cache": cache(shape, setting),
        "buffers for the server": buffers(shape, setting),
    }


def gathered(shape: Shape, setting: Setting) -> float:
    """Weights that a pass gathers: with FSDP the layer in use, the next one and the output embedding."""
    live = {"zero3": LIVE, "fsdp": 2 * shape.linear // shape.layers + shape.vocabulary * shape.hidden}
    return min(live.get(setting.strategy, 0), shape.parameters) * setting.compute_bytes


def gathers_all(setting: Setting) -> bool:
    """Whether TRL gathers the whole ZeRO-3 model: for transformers' generation, or to merge an adapter for vLLM."""
    vllm = setting.vllm is not None or setting.server is not None
    return setting.peft if vllm else setting.sequences > 0


def activations(shape: Shape, setting: Setting) -> float:
    """What all layers keep for the backward pass; with gradient checkpointing their inputs, and one layer whole."""
    tokens, narrow = setting.batch * setting.length, setting.compute_bytes
    stream = setting.weight_bytes if setting.strategy == "ddp" else narrow  # autocast leaves the residual stream
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
    count = 3 if setting.share("weights") > 1 else 2
    sent = setting.frozen_bytes if setting.peft else setting.trained_bytes
    largest = GIB + shape.vocabulary * shape.hidden * sent
    return min(count * largest, (count - 1) * shape.parameters * sent)


def phases(setting: Setting) -> list[set[str]]:
    """The names of what each phase holds: generation, the reference's pass, the passes, the update."""
    always = {"weights", "reference model", "optimizer", "gradients in DDP's buckets"}
    if setting.strategy == "zero3":  # which keeps a buffer of its gradients from the start
        always |= {"gradients", "gradients in DeepSpeed's bucket"}
    generating = {"all weights gathered", "buffers for the server"}
    if setting.vllm is None and setting.server is None:
        generating |= {"gathered weights", "16-bit copies of weights", "key-value cache"}
    passing = {"gathered weights", "16-bit copies of weights", "activations", "logits"}
    passing |= {"gradients in DeepSpeed's bucket"} | ({"gradients"} if setting.passes > 1 else set())
    updating = {"gradients", "gradients in float32"}
    return [always | more for more in (generating, {"gathered reference model", "logits"}, passing, updating)]


def held(parts: dict[str, float], setting: Setting) -> float:
    """In every phase, in bytes, also while a colocated vLLM generates."""
    return sum(parts[name] for name in set.intersection(*phases(setting)))


def peak(parts: dict[str, float], setting: Setting) -> float:
    """The largest phase, in bytes, without vLLM."""
    return max(sum(parts[name] for name in phase) for phase in phases(setting))


def verdict(shape: Shape, setting: Setting, gigabytes: int) -> str:
    """Whether a GPU of this size (in GB) has room: fits, tight (over 90 % of it), or does not fit."""
    size, parts = gigabytes * 1e9, items(shape, setting)
    needed = training = peak(parts, setting) + CONTEXT
    if setting.vllm is not None:
        engine = setting.vllm * size
        one_sequence = setting.length * 2 * shape.layers * shape.key_value * 2  # bytes of its 16-bit cache
        if engine < (2 * shape.parameters + one_sequence) / setting.tensor_parallel:
            return "does not fit"
        needed = max(training, held(parts, setting) + CONTEXT + engine) if setting.sleeps else training + engine
    return "does not fit" if needed > size else "tight" if needed > 0.9 * size else "fits"


def knobs(shape: Shape, setting: Setting) -> list[tuple[str, float]]:
    """The recipe lines that would save most, each tried alone, with the bytes saved, largest first."""
    changes: dict[str, dict[str, Any]] = {
        "gradient_checkpointing: true": {"checkpointing": True},
        "per_device_train_batch_size: 1": {"batch": 1, "passes": max(2, setting.passes)},
        f"half the length ({setting.length // 2} tokens)": {"length": setting.length // 2},
        "optim: adamw_8bit": {"moment_bytes": min(2, setting.moment_bytes if setting.moment_bytes is not None else 2)},
        "dtype: bfloat16": {"weight_bytes": 2},
        "beta: 0": {"reference": False},
    }
    if not setting.peft:
        lora = {"peft": True, "reference": False}
        changes |= {"use_peft: true": lora, "use_peft and load_in_4bit: true": lora | {"linear_bytes": NF4}}
    if setting.share("weights") == 1:
        changes["--layout zero3 on 8 GPUs"] = {"strategy": "zero3", "processes": 8}
    now, saved = peak(items(shape, setting), setting), []
    small = replace(shape, trained=shape.parameters // 100)  # an adapter of rank 16 is about a hundredth of the model
    for key, change in changes.items():
        changed = replace(setting, **change)
        size = now - peak(items(small if "peft" in change else shape, changed), changed)
        saved += [(key, size)] if size > 0.05 * now else []
    return sorted(saved, key=lambda found: -found[1])[:4]
