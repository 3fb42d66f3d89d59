"""What a training needs of each GPU's memory: an estimate from the model's config alone, in bytes.

A step has three phases, and the memory is that of the largest: generation (weights and key-value cache), the passes
(weights, optimizer, activations), and the update (weights, gradients, optimizer). ZeRO and FSDP share out what each of
the processes would otherwise hold whole (Rajbhandari et al. 2020, arXiv:1910.02054, section 5). What a layer keeps for
its backward pass is counted tensor by tensor, after Korthikanti et al. 2022 (arXiv:2205.05198, section 4), for
attention that keeps no scores. Measured against real runs in docs/performance.md.
"""

from dataclasses import dataclass, field, replace

from grpo_math.errors import one_line
from grpo_math.models.models import is_adapter, read_adapter, trains_adapter
from grpo_math.recipe.recipe import Recipe
from grpo_math.recipe.vllm import trainer_dtype

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4 = 0.5 + 4 / 64  # bytes a weight: 4 bits, and a float32 scale for every 64 of them
CONTEXT = 1.0 * GIB  # what CUDA, its libraries and the allocator's gaps take, about
OPTIMIZERS = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 0}  # bytes a weight
TILE = (4096, 32768)  # tokens and vocabulary entries of which TRL has logits at a time (trl/kernels/chunked_logprob.py)
TILE_ON_CPU = (512, 2048)  # those that stay in a core's cache: a head in half the time (docs/performance.md)
ON_CPU = 8.5  # float32 tiles there at a time, measured; a GPU's kernels work in place
CARDS = (24, 40, 48, 80, 141)  # GB, as GPUs are sold


@dataclass(frozen=True)
class Shape:
    """What counts of a model. `linear` are the parameters that quantisation rounds, `trained` those with gradients."""

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
    """What counts of a recipe on its layout; lengths are in tokens, `sequences` are generated at a time on a GPU."""

    weight_bytes: float
    mixed: bool  # float32 weights, 16-bit passes
    peft: bool
    linear_bytes: float | None  # of a quantised weight
    checkpointing: bool
    reference: bool
    optimizer_bytes: int
    batch: int
    passes: int
    sequences: int
    length: int
    shards: dict[str, int] = field(default_factory=dict)  # of weights, gradients, optimizer
    on_cpu: bool = False
    vllm: float | None = None  # colocated: its share of the GPU
    sleeps: bool = False
    tensor_parallel: int = 1

    @property
    def compute_bytes(self) -> float:
        return 2 if self.mixed else self.weight_bytes


def weightless(config, recipe: Recipe):
    """The model of a config of transformers', without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), one_line("model_name_or_path: its config makes no language model"):
        trust = recipe.trainer.get("trust_remote_code", False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def count_parameters(config, recipe: Recipe) -> int:
    return sum(parameter.numel() for parameter in weightless(config, recipe).parameters())


def shape_of(config, recipe: Recipe) -> Shape:
    import torch

    model = weightless(config, recipe)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        linear = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and id(module) not in heads
        )
        trained = adapter_size(model, recipe) if trains_adapter(recipe) else parameters
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


def adapter_size(model, recipe: Recipe) -> int:
    from peft import get_peft_model
    from trl import ModelConfig, get_peft_config

    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    there = is_adapter(name, revision)
    config = read_adapter(name, revision) if there else get_peft_config(ModelConfig(**recipe.model))
    config.inference_mode = False  # as an adapter that is saved says
    with one_line("use_peft: peft refuses it", "see lora_target_modules (TRL takes a list of one for a pattern)"):
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def setting_of(
    recipe: Recipe, dtype: str, batch: int, passes: int, sequences: int, length: int, strategy: str, processes: int
) -> Setting:
    """`dtype` is that of the loaded weights; `strategy` names what is sharded: none, zero2, zero3 or fsdp2."""
    given = recipe.trainer
    peft = trains_adapter(recipe)
    sharded = {
        "zero2": ("gradients", "optimizer"),
        "zero3": ("weights", "gradients", "optimizer"),
        "fsdp2": ("weights", "gradients", "optimizer"),
    }.get(strategy, ())
    colocated = given.get("use_vllm") and given.get("vllm_mode", "colocate") == "colocate"
    elsewhere = given.get("use_vllm") and not colocated
    share = given.get("vllm_gpu_memory_utilization", 0.3) if colocated else None
    optimizer = OPTIMIZERS.get(given.get("optim", ""), 2 * (4 if peft else BYTES[dtype]))
    return Setting(
        weight_bytes=BYTES[dtype],
        mixed=dtype == "float32" and trainer_dtype(given) != "float32",
        peft=peft,
        linear_bytes=NF4 if recipe.model.get("load_in_4bit") else 1 if recipe.model.get("load_in_8bit") else None,
        checkpointing=given.get("gradient_checkpointing", True),
        reference=bool(given.get("beta")) and not peft and recipe.sft is None,
        optimizer_bytes=optimizer,
        batch=batch,
        passes=passes,
        sequences=0 if elsewhere else sequences,
        length=length,
        shards=dict.fromkeys(sharded, processes),
        on_cpu=bool(given.get("use_cpu")),
        vllm=share,
        sleeps=bool(given.get("vllm_enable_sleep_mode", share is not None and share > 0.5)),
        tensor_parallel=given.get("vllm_tensor_parallel_size", 1),
    )


def items(shape: Shape, setting: Setting) -> dict[str, float]:
    """Bytes by what they are for. Those of one phase do not add up with those of another: see `peak`."""
    whole = shape.parameters * setting.weight_bytes
    if setting.linear_bytes:
        whole = shape.linear * setting.linear_bytes + (shape.parameters - shape.linear) * 2
    weights, gradients, optimizer = (setting.shards.get(part, 1) for part in ("weights", "gradients", "optimizer"))
    gathered = whole / shape.layers if weights > 1 else 0.0  # the layer that is computed
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
    }


def activations(shape: Shape, setting: Setting) -> float:
    """What the layers keep for the backward pass: everything, or with gradient checkpointing their inputs and one layer
    whole."""
    tokens, narrow = setting.batch * setting.length, setting.compute_bytes
    stream = 4 if setting.mixed else narrow  # the residual stream stays in the dtype of the weights
    norms = 2 * shape.hidden * (stream + 4)  # two norms: their input, and its float32
    attention = shape.hidden + 3 * shape.query + 4 * shape.key_value
    layer = norms + narrow * (attention + shape.hidden + 4 * shape.intermediate)
    if setting.checkpointing:
        return tokens * (shape.layers * shape.hidden * stream + 2 * layer)
    return tokens * shape.layers * layer


def logits(shape: Shape, setting: Setting) -> float:
    """A tile of logits, and the float32 gradient of the output embedding."""
    tile = TILE_ON_CPU if setting.on_cpu else TILE
    tokens, entries = min(setting.batch * setting.length, tile[0]), min(shape.vocabulary, tile[1])
    head = 0.0 if setting.peft else 4 * shape.vocabulary * shape.hidden
    return tokens * entries * (4 * ON_CPU if setting.on_cpu else setting.compute_bytes) + head


def cache(shape: Shape, setting: Setting) -> float:
    """Keys and values of what is generated at a time, and the last logits; vLLM has its own share of the GPU."""
    per_token = 2 * shape.layers * shape.key_value * setting.compute_bytes
    return setting.sequences * (setting.length * per_token + 2 * 4 * shape.vocabulary)


def held(parts: dict[str, float]) -> float:
    """What the trainer holds in every phase, in bytes: while a colocated vLLM generates, too."""
    return parts["weights"] + parts["reference model"] + parts["optimizer"]


def peak(parts: dict[str, float], setting: Setting) -> float:
    """The largest phase, in bytes, without vLLM."""
    passing = held(parts) + parts["16-bit copies of weights"] + parts["activations"] + parts["logits"]
    passing += parts["gradients"] if setting.passes > 1 else 0.0  # those of the pass before
    generating = held(parts)
    if setting.vllm is None:
        generating += parts["16-bit copies of weights"] + parts["key-value cache"]
    return max(passing, held(parts) + parts["gradients"], generating)


def needed_by_vllm(shape: Shape, setting: Setting) -> float:
    """The least a colocated engine can do with: 16-bit weights, and the cache of one sequence."""
    per_token = 2 * shape.layers * shape.key_value * 2
    return (2 * shape.parameters + setting.length * per_token) / setting.tensor_parallel


def verdict(shape: Shape, setting: Setting, gigabytes: int) -> str:
    """Whether a GPU of so many GB has room: fits, tight (over 90 % of it), or does not fit."""
    size, parts = gigabytes * 1e9, items(shape, setting)
    training = peak(parts, setting) + CONTEXT
    needed = training
    if setting.vllm is not None:
        engine = setting.vllm * size
        if engine < needed_by_vllm(shape, setting):
            return "does not fit"
        needed = max(training, held(parts) + CONTEXT + engine) if setting.sleeps else training + engine
    return "does not fit" if needed > size else "tight" if needed > 0.9 * size else "fits"


def knobs(shape: Shape, setting: Setting) -> list[tuple[str, float]]:
    """The recipe lines that would save most, with the bytes, largest first; each tried alone."""
    now = peak(items(shape, setting), setting)
    lora = {"peft": True, "reference": False, "optimizer_bytes": 8}
    changes = {
        "gradient_checkpointing: true": {"checkpointing": True},
        "per_device_train_batch_size: 1": {"batch": 1, "passes": max(2, setting.passes)},
        f"half the length ({setting.length // 2} tokens)": {"length": setting.length // 2},
        "optim: adamw_8bit": {"optimizer_bytes": min(2, setting.optimizer_bytes)},
        "dtype: bfloat16": {"weight_bytes": 2, "mixed": False, "optimizer_bytes": min(4, setting.optimizer_bytes)},
        "beta: 0": {"reference": False},
    }
    saved = {key: now - peak(items(shape, replace(setting, **change)), setting) for key, change in changes.items()}
    if not setting.peft:  # an adapter of rank 16 is about a hundredth of the model
        small = replace(shape, trained=shape.parameters // 100)
        for key, extra in (("use_peft: true", {}), ("use_peft and load_in_4bit: true", {"linear_bytes": NF4})):
            saved[key] = now - peak(items(small, replace(setting, **lora, **extra)), setting)
    if not setting.shards:
        eighths = dict.fromkeys(("weights", "gradients", "optimizer"), 8)
        saved["--layout zero3 on 8 GPUs"] = now - peak(items(shape, replace(setting, shards=eighths)), setting)
    return [(key, size) for key, size in sorted(saved.items(), key=lambda item: -item[1]) if size > 0.05 * now][:4]
