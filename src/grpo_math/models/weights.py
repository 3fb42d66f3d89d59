"""Whether the files of a model hold the weights of its architecture: all of them, in their shapes, and no others.

transformers initialises missing weights at random and leaves out unexpected ones, with no more than a log message.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.errors import UserError, one_line, some
from grpo_math.models.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel

MASKS = (".masked_bias", ".attn.bias")  # buffers of attention that old checkpoints of GPT-2 and GPT-J hold
SHOWN = 3  # weights named per kind


def check_weights(
    model: ModelSource, local: bool = False, plugin: Any = None, changes: dict[str, Any] | None = None
) -> bool:
    """Raise UserError unless the weights of the model (of an adapter: of its base model) fit its architecture.

    transformers loads them to the meta device: of a folder's safetensors files only the headers are read. With `local`,
    nothing is downloaded. `plugin` is a training's DeepSpeed plugin, `changes` are its model_init_kwargs,
    which may change the architecture. Returns False where there is nothing to compare:
    weights that are not on this machine, or are quantised.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    base, config = model.base, model.config()
    config.update({key: value for key, value in (changes or {}).items() if key != "dtype" and hasattr(config, key)})
    quantised = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    if method in AUTO_QUANTIZER_MAPPING or (local and not base.on_this_machine()):
        return False
    with unsharded(plugin):
        with base.loading():
            weights = headers(Path(base.name))
        architecture = architecture_of(config)
        if weights and architecture:
            arguments = {"config": config, "state_dict": weights, "device_map": {"": "meta"}}
            loaded(base, architecture.from_pretrained, pretrained_model_name_or_path=None, **arguments)
        else:  # on the Hub, pickled, or by the model's own code
            load_base(model, device_map={"": "meta"}, local_files_only=local)
    return True


@contextmanager
def unsharded(plugin: Any) -> Iterator[None]:
    """Without the ZeRO-3 of a DeepSpeed plugin (None: nothing to do), under which transformers refuses the meta device,
    and building a model is a collective operation."""
    from transformers.integrations import unset_hf_deepspeed_config

    if plugin:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if plugin:
            plugin.set_deepspeed_weakref()


def headers(folder: Path) -> "dict[str, Tensor] | None":
    """The weights that transformers loads from a folder's safetensors files, on the meta device; None for others."""
    import torch
    from safetensors import safe_open

    names, index = {"model.safetensors"}, folder / "model.safetensors.index.json"
    if not (folder / "model.safetensors").exists():
        if not index.exists():
            return None
        content = json.loads(index.read_text(encoding="utf-8"))
        names, _ = set(content["weight_map"].values()), content["metadata"]  # transformers reads both
    found: dict[str, Tensor] = {}
    for name in names:
        with safe_open(folder / name, "pt") as file:
            keys = file.keys()
            found |= {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in keys}
    return found


def architecture_of(config: "PretrainedConfig") -> "type[PreTrainedModel] | None":
    """The class of transformers that TRL loads this config's model with (trl.trainer.utils.create_model_from_path); a
    vision-language config names that of the whole model. None for a class of the model's own code."""
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    return named if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel) else None


def without_weights(config: "PretrainedConfig", trust_remote_code: bool = False) -> "PreTrainedModel":
    """The model that TRL loads for this config, on the meta device. Raises UserError where it is no language model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), one_line("model_name_or_path: its config describes no language model"):
        if architecture := architecture_of(config):
            return architecture(config)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def load_base(model: ModelSource, **arguments: Any) -> "PreTrainedModel":
    """The whole model, or the base model of an adapter, by the class that TRL takes, on the CPU in float32 unless the
    arguments of `from_pretrained` say otherwise. Raises UserError where the weights do not fit."""
    from trl.trainer.utils import create_model_from_path

    base = model.base
    if not model.config().architectures:
        raise UserError(
            f"{base.name}/config.json has no `architectures`: add the class of the model, as save_pretrained does"
        )
    arguments = {"device_map": None} | base.arguments | arguments
    return loaded(base, create_model_from_path, model_id=base.name, **arguments)


def loaded(base: ModelSource, load: Callable[..., Any], **arguments: Any) -> "PreTrainedModel":
    """What `load` returns. Raises UserError for weights that are missing, unexpected or of another shape; those that
    the architecture ties or ignores by design may be missing."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with base.loading():
        logging.set_verbosity(logging.CRITICAL)  # in place of its load report
        try:
            model, info = load(**arguments, output_loading_info=True, ignore_mismatched_sizes=True)
        finally:
            logging.set_verbosity(level)
    if model.get_output_embeddings() is None:
        raise UserError(
            f"{base.name}: {type(model).__name__} in config.json is not a language model: it has no LM head"
        )
    if misfits := misfits_of(info):
        raise UserError(
            f"{base.name}: its weights do not match the architecture in config.json: {misfits}: save the unwrapped "
            "model with save_pretrained, or correct config.json"
        )
    return model


def check_finite(model: "Module | None", name: str) -> None:
    """Raise UserError where a weight is NaN or infinite: the model would generate nonsense, or not at all."""
    import torch

    for key, weight in model.named_parameters() if model else ():
        if weight.is_meta or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            continue
        if not weight.detach().sum(dtype=torch.float32).isfinite():  # a sum takes no memory
            raise UserError(f"{name}: its weights are not finite ({key}): use an earlier checkpoint, or another model")


def misfits_of(info: dict) -> str:
    """The missing, unexpected and mismatched weights in transformers' loading info: how many, and the first of them."""
    shapes = {f"{key} ({tuple(there)} for {tuple(wanted)})" for key, there, wanted in info["mismatched_keys"]}
    unexpected = {key for key in info["unexpected_keys"] if not key.endswith(MASKS)}
    found = {"missing": info["missing_keys"], "unexpected": unexpected, "of another shape": shapes}
    return ", ".join(f"{len(keys):,} {kind} ({some(sorted(keys), SHOWN)})" for kind, keys in found.items() if keys)
