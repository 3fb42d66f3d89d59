"""The policy: what TRL's trainers train, the same model for evaluation, and LoRA adapters on their base models."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UserError, one_line
from grpo_math.models.source import ModelSource
from grpo_math.models.weights import check_finite, check_weights, load_base

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel
    from trl import GRPOConfig, ModelConfig, SFTConfig


def model_config(keys: dict) -> "ModelConfig":
    """TRL's ModelConfig of a recipe's TRL keys."""
    from trl import ModelConfig

    return ModelConfig(**{field.name: keys[field.name] for field in fields(ModelConfig) if field.name in keys})


def from_pretrained_arguments(keys: dict) -> dict[str, Any]:
    from trl import get_quantization_config

    return {
        "attn_implementation": keys.get("attn_implementation"),
        "dtype": keys.get("dtype", "float32"),
        "quantization_config": get_quantization_config(model_config(keys)),
    }


def load_model(keys: dict) -> "PreTrainedModel | PeftModel":
    """The model (or adapter with its base) as training loads it, on the GPU if there is one."""
    from accelerate import PartialState

    source = ModelSource.of(keys)
    load = load_adapter if source.adapter else load_base
    model = load(source, **from_pretrained_arguments(keys))
    check_finite(model, source.name)
    quantised = getattr(model, "is_quantized", False)  # is on its device already and cannot be moved
    return model if quantised else model.to(PartialState(cpu=keys.get("use_cpu", False)).device)


def policy_arguments(keys: dict, config: "GRPOConfig | SFTConfig", checkpoint: Path | None = None) -> dict[str, Any]:
    """The trainer's `model`, `peft_config` and `quantization_config`. Raises UserError where the weights of the model,
    or of the checkpoint to resume from, do not fit.

    A whole model is a path or id, which TRL loads itself. An adapter is loaded here and trained on: LoRA settings in
    the recipe must be the adapter's.
    """
    from trl import get_peft_config, get_quantization_config

    source, wanted = ModelSource.of(keys), model_config(keys)
    quantization = get_quantization_config(wanted)
    if not source.adapter:
        if quantization and not wanted.use_peft:
            raise UserError(
                "load_in_4bit, load_in_8bit: quantised weights cannot be trained: set use_peft: true as well"
            )
        resumed = [ModelSource(str(checkpoint))] if checkpoint and any(checkpoint.glob("model.safetensors*")) else []
        changes: Any = config.model_init_kwargs
        for whole in (source, *resumed):
            check_weights(whole, plugin=config.deepspeed_plugin, changes=changes)
        return {"model": source.name, "peft_config": get_peft_config(wanted), "quantization_config": quantization}
    check_lora_settings(keys, source.name, source.adapter)
    given: Any = config.model_init_kwargs or {}
    config.model_init_kwargs = None  # TRL would warn that it does not use them
    return {"model": load_adapter(source, trainable=True, **from_pretrained_arguments(keys) | given)}


def trains_adapter(keys: dict) -> bool:
    """A new one, or the one that is named as the model."""
    return bool(keys.get("use_peft")) or ModelSource.of(keys).adapter is not None


def widen(model: "Module | None", source: ModelSource) -> None:
    """Make the adapter of a quantised model float32 again, with its saved values if it was loaded.

    TRL rounds it to bfloat16, in which small steps vanish. Other models stay unchanged.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    if not isinstance(model, PeftModel) or not getattr(model, "is_quantized", False):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if source.adapter:
        set_peft_model_state_dict(model, load_peft_weights(source.name, "cpu", revision=source.revision))


def for_text(model: "PreTrainedModel | PeftModel") -> "list[Parameter]":
    """The parameters that text passes through; a vision-language model has others, such as its vision tower."""
    whole: Any = getattr(model, "get_base_model", lambda: model)()
    if model.config.get_text_config() is model.config:
        return list(whole.parameters())
    parts = (whole.get_decoder(), whole.get_input_embeddings(), whole.get_output_embeddings())
    return list({id(one): one for part in parts for one in part.parameters()}.values())


def freeze_vision(model: "PreTrainedModel | PeftModel | None") -> None:
    """Freeze what text does not pass through: it has no gradients, for which DDP waits, and DeepSpeed optimizer
    states."""
    kept = {id(one) for one in for_text(model)} if model else set()
    for one in model.parameters() if model else ():
        if id(one) not in kept:
            one.requires_grad_(False)


def load_adapter(model: ModelSource, trainable: bool = False, **base_arguments: Any) -> "PeftModel":
    """An adapter on its base model; `base_arguments` go to the base model's `from_pretrained`.

    Raises UserError when the base model is missing, or when the adapter was trained on another one.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    model.check()
    fix = "train it again, or name another"
    with one_line(f"{model.name}: no readable adapter weights", fix, (Exception,)):
        saved = load_peft_weights(model.name, "cpu", revision=model.revision)
    whole = load_base(model, **base_arguments)
    other = UserError(
        f"{model.name} is an adapter of {model.base.name}, but its weights do not fit it: use the model that it was "
        f"trained on, or correct {model.name}/adapter_config.json"
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # of missing weights, which are an error here
            adapter = PeftModel.from_pretrained(whole, model.name, is_trainable=trainable, revision=model.revision)
    except (RuntimeError, ValueError, KeyError) as error:  # weights of another shape, layers that are not there
        raise other from error
    wanted = get_peft_model_state_dict(adapter, save_embedding_layers=False)  # peft may have saved those as well
    if wanted.keys() - saved.keys() or any("lora_" in key for key in saved.keys() - wanted.keys()):
        raise other
    return adapter


def changes_tied_weights(adapter: "PeftModel") -> bool:
    """Whether LoRA changes one of an embedding and a head that are the same weights: merged, it would change both."""
    from peft.tuners.lora import LoraLayer

    model: Any = adapter.get_base_model()
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return any(isinstance(layer, LoraLayer) for layer in layers) and layers[0].weight is layers[1].weight


def check_lora_settings(keys: dict, name: str, adapter: "LoraConfig") -> None:
    """Raise UserError where a recipe's LoRA keys are not those of the adapter that it trains on."""
    there = {"use_peft": True, "lora_r": adapter.r, "use_dora": adapter.use_dora, "use_rslora": adapter.use_rslora}
    there |= {f"lora_{key}": getattr(adapter, f"lora_{key}") for key in ("alpha", "dropout")}
    there |= {f"lora_{key}": getattr(adapter, key) for key in ("target_modules", "modules_to_save")}
    there = {key: in_order(value) for key, value in there.items()}
    given = {key: in_order(keys[key]) for key in there if keys.get(key) not in (None, [])}
    if given.get("lora_target_modules") in (["all-linear"], [there["lora_target_modules"]]):
        del given["lora_target_modules"]  # the adapter knows them by their names, or by the one pattern
    wrong = sorted(
        f"{key}: {value} (the adapter has {there[key]})" for key, value in given.items() if value != there[key]
    )
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: training continues with the adapter {name}: leave out what differs, or merge "
            f"it first (grpo-math export {name} OUT)"
        )


def in_order(value):
    return sorted(value) if isinstance(value, set | list) else value
