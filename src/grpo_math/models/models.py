"""The recipe's tokenizer and model, from a local folder or the Hub."""

import functools
import hashlib
import os
import re
import warnings
from pathlib import Path

from grpo_math.data import TEMPLATES, PromptTemplate, token_ids
from grpo_math.errors import UserError, one_line
from grpo_math.models.safety import check_files, load_arguments, without_its_code
from grpo_math.recipe.recipe import Recipe

WEIGHTS = re.compile(r"(.*\.safetensors|(pytorch|adapter)_model.*\.bin|(adapter_)?config\.json)")
FIX_BASE = "put that model there, or correct {}/adapter_config.json"
FIX = "give a folder with config.json, weights and a tokenizer, or a Hub id that can be reached"


def load_tokenizer(recipe: Recipe):
    """The model's tokenizer, padding on the left as generation needs.

    Raises UserError when there is none, when it has no chat template and the prompt template needs one, or when the
    model may not be loaded.
    """
    from transformers import AutoTokenizer

    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    check_model(recipe)
    source = tokenizer_source(name)
    with one_line(f"model_name_or_path: no model at {name!r}", FIX), without_its_code(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=revision if revision and source == name else "main",
            trust_remote_code=recipe.trainer.get("trust_remote_code", False),
            padding_side="left",
        )
    if extra := recipe.trainer.get("chat_template_kwargs"):  # TRL renders with them, so counts and evaluation do too
        tokenizer.apply_chat_template = functools.partial(tokenizer.apply_chat_template, **extra)
    if recipe.template.chat and not tokenizer.chat_template:
        plain = ", ".join(name for name, template in TEMPLATES.items() if not template.chat)
        raise UserError(
            f"prompt_template: the tokenizer of {name} has no chat template to render it with: use a plain-text one "
            f"({plain}, or your own with chat: false)"
        )
    if end := recipe.trainer.get("eos_token"):
        if end not in tokenizer.get_vocab():
            raise UserError(f"eos_token: {end!r} is no token of {name}")
        tokenizer.eos_token = end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise UserError(f"model_name_or_path: the tokenizer of {name} has no end token: no completion could ever end")
    try:
        token_ids(recipe.template.prompt("1+1?", tokenizer), tokenizer)
    except Exception as error:  # whatever a chat template written in Jinja may raise
        raise UserError(f"prompt_template: the chat template of {name} refuses it ({error})") from error
    return tokenizer


def check_model(recipe: Recipe) -> None:
    """Raise UserError for a path that is no folder and cannot be an id on the Hub either, and for what the recipe does
    not allow."""
    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    if name.count("/") != 1 and "/" in name and not os.path.isdir(name):
        raise UserError(f"model_name_or_path: no model at {name!r}: there is no such folder: {FIX}")
    check_source(name, revision, **load_arguments(recipe.trainer))


def check_source(name: str, revision: str | None = None, **allowed) -> None:
    """`check_files` of a model, or of an adapter and its base model."""
    check_files(name, revision, **allowed)
    if is_adapter(name, revision):
        base = read_adapter(name, revision)
        check_files(base.base_model_name_or_path, base.revision, **allowed)


def tokenizer_source(name: str) -> str:
    """Where the tokenizer of a model is: with it, or with the base model of an adapter that brings none."""
    bare = os.path.isdir(name) and not os.path.exists(os.path.join(name, "tokenizer_config.json"))
    return read_adapter(name).base_model_name_or_path if bare and is_adapter(name) else name


def end_tokens(name: str) -> set[int]:
    """The end tokens in the generation config of a model (of its base, for an adapter), none where there is no file."""
    from transformers import GenerationConfig

    name = read_adapter(name).base_model_name_or_path if is_adapter(name) else name
    try:
        return ends_of(GenerationConfig.from_pretrained(name))
    except OSError:
        return set()


def ends_of(generation_config) -> set[int]:
    ends = generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def weights_fingerprint(name: str, revision: str | None = None) -> str:
    """16 hex digits that change with any weight, an adapter's base model's too: of the files, else the Hub's commit."""
    if not os.path.isdir(name):
        from transformers.utils.hub import cached_file, extract_commit_hash

        file = "adapter_config.json" if is_adapter(name, revision) else "config.json"
        with one_line(f"model_name_or_path: no model at {name!r}", FIX):
            return extract_commit_hash(cached_file(name, file, revision=revision or "main"), None)[:16]
    files = [file for file in sorted(Path(name).iterdir()) if WEIGHTS.fullmatch(file.name)]
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise UserError(f"model_name_or_path: no weights in {name}: {FIX}")
    digest = hashlib.sha256()
    if is_adapter(name):
        base = read_adapter(name).base_model_name_or_path
        with one_line(f"{name} is an adapter of {base}, which cannot be loaded", FIX_BASE.format(name), (UserError,)):
            digest.update(weights_fingerprint(base).encode())
    for file in files:
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def load_model(recipe: Recipe):
    """The model (or adapter with its base) as training loads it, on the GPU if there is one."""
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    if is_adapter(name, revision):
        model = load_adapter(name, revision, **base_arguments(recipe))
    else:
        with one_line(f"model_name_or_path: no model at {name!r}", FIX, (Exception,)):
            model = AutoModelForCausalLM.from_pretrained(name, revision=revision or "main", **base_arguments(recipe))
    quantised = getattr(model, "is_quantized", False)  # such a model is where it has to be, and cannot be moved
    return model if quantised else model.to(PartialState(cpu=recipe.trainer.get("use_cpu", False)).device)


def base_arguments(recipe: Recipe) -> dict:
    """How a model is loaded, for `from_pretrained`. The trainer moves it to its device."""
    from trl import ModelConfig, get_quantization_config

    return load_arguments(recipe.trainer) | {
        "attn_implementation": recipe.model.get("attn_implementation"),
        "dtype": recipe.model.get("dtype", "float32"),
        "quantization_config": get_quantization_config(ModelConfig(**recipe.model)),
    }


def policy_arguments(recipe: Recipe, config) -> dict:
    """What TRL's trainers are to train: `model`, `peft_config` and `quantization_config`.

    A model is a path or id, which TRL loads itself. An adapter is loaded here and gone on with, as it is: where the
    recipe names LoRA settings of its own, they must be the adapter's.
    """
    from trl import ModelConfig, get_peft_config, get_quantization_config

    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    wanted = ModelConfig(**recipe.model)
    quantization = get_quantization_config(wanted)
    if not is_adapter(name, revision):
        if quantization and not wanted.use_peft:
            raise UserError("load_in_4bit, load_in_8bit: rounded weights cannot be trained: set use_peft: true as well")
        return {"model": name, "peft_config": get_peft_config(wanted), "quantization_config": quantization}
    check_lora_settings(recipe, read_adapter(name, revision))
    given, config.model_init_kwargs = config.model_init_kwargs, None  # TRL would warn that it has no use for them
    return {"model": load_adapter(name, trainable=True, **base_arguments(recipe) | given | {"revision": revision})}


def check_lora_settings(recipe: Recipe, adapter) -> None:
    there = {"use_peft": True, "lora_r": adapter.r}
    there |= {f"lora_{key}": getattr(adapter, f"lora_{key}") for key in ("alpha", "dropout")}
    there |= {f"lora_{key}": getattr(adapter, key) for key in ("target_modules", "modules_to_save")}
    there |= {"use_dora": adapter.use_dora, "use_rslora": adapter.use_rslora}
    there = {key: sorted(value) if isinstance(value, set | list) else value for key, value in there.items()}
    asked = {key: value for key, value in recipe.model.items() if value not in (None, [])}
    given = {key: sorted(value) if isinstance(value, list) else value for key, value in asked.items()}
    if given.get("lora_target_modules") in (["all-linear"], [there["lora_target_modules"]]):
        del given["lora_target_modules"]  # the adapter knows them by their names, or by the one pattern
    wrong = [
        f"{key}: {given[key]} (the adapter has {there[key]})"
        for key in there.keys() & given
        if given[key] != there[key]
    ]
    if wrong:
        raise UserError(
            f"{', '.join(sorted(wrong))}: training goes on with the adapter {adapter.path} as it is: leave out what "
            f"differs, or merge it first (grpo-math export {adapter.path} OUT)"
        )


def trains_adapter(recipe: Recipe) -> bool:
    """A new one, or the one that is named as the model."""
    name, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision")
    return bool(recipe.model.get("use_peft")) or is_adapter(name, revision)


def is_adapter(name: str, revision: str | None = None) -> bool:
    from transformers.utils import find_adapter_config_file

    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except OSError:
        return False


def read_adapter(name: str, revision: str | None = None):
    """The LoraConfig of an adapter, with the adapter's own place as `path`."""
    from peft import LoraConfig, PeftConfig

    with one_line(f"{name}: no LoRA adapter that can be read", "train it again, or name another", (Exception,)):
        config = PeftConfig.from_pretrained(name, revision=revision)
        if not isinstance(config, LoraConfig):
            raise TypeError(f"it is of the kind {config.peft_type}")
        if not config.base_model_name_or_path:
            raise ValueError("adapter_config.json names no base_model_name_or_path")
    config.path = name
    return config


def load_adapter(name: str, revision: str | None = None, trainable: bool = False, **base_kwargs):
    """A LoRA adapter on its base model, as a PeftModel; `base_kwargs` go to the base model's `from_pretrained`.

    Raises UserError when the base model is not there, or when the adapter was trained on another one.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights
    from trl.trainer.utils import create_model_from_path

    allowed = load_arguments({})
    allowed |= {key: base_kwargs[key] for key in allowed.keys() & base_kwargs}
    check_source(name, revision, **allowed)
    config = read_adapter(name, revision)
    with one_line(f"{name}: no adapter weights that can be read", "train it again, or name another", (Exception,)):
        saved = load_peft_weights(name, "cpu", revision=revision)
    base = config.base_model_name_or_path
    what, fix = f"{name} is an adapter of {base}", FIX_BASE.format(name)
    with one_line(f"{what}, which cannot be loaded", fix):
        model = create_model_from_path(
            base, **{"device_map": None} | base_kwargs | allowed | {"revision": config.revision or "main"}
        )
    other = UserError(f"{what}, but was trained on another model, its weights do not fit: {fix}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of missing weights, which are an error here
            adapter = PeftModel.from_pretrained(model, name, is_trainable=trainable, revision=revision)
    except (RuntimeError, ValueError) as error:  # weights of another shape, layers that are not there
        raise other from error
    if any("lora_" in key for key in saved.keys() ^ get_peft_model_state_dict(adapter).keys()):
        raise other
    return adapter


def widen(model, adapter: str) -> None:
    """Make the adapter of a quantised model float32 again, with the values it came with, if it is one that was given.

    TRL rounds it to bfloat16, in which a small step is no step. Other models stay unchanged.
    """
    if not getattr(model, "is_quantized", False):
        return
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if is_adapter(adapter):
        set_peft_model_state_dict(model, load_peft_weights(adapter, "cpu"))


def load_reward_models(rewards: list, names: list[str], template: PromptTemplate, **arguments) -> tuple[list, list]:
    """The rewards with every path or id replaced by the reward model it names, and the tokenizers of those (else None).

    A reward model is a sequence classifier with one label; its metric goes by the entry's name. `arguments` are those
    of safety.load_arguments.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    arguments = load_arguments({}) | arguments
    loaded, tokenizers = [], []
    for reward, name in zip(rewards, names, strict=True):
        tokenizer = None
        if isinstance(reward, str):
            where = f"rewards.{name}.reward_model: {reward}"
            if is_adapter(reward):
                raise UserError(
                    f"{where}: is an adapter: merge it into its base model first (merge_and_unload in peft)"
                )
            with one_line(f"{where}: no reward model there", FIX), without_its_code(reward):
                check_source(reward, **arguments)
                path, trusted = reward, arguments["trust_remote_code"]
                tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
                try:
                    reward, info = AutoModelForSequenceClassification.from_pretrained(
                        path, num_labels=1, output_loading_info=True, **arguments
                    )
                except RuntimeError as error:
                    raise UserError(f"{where}: has a head for several labels: a reward model has one") from error
            if info["missing_keys"]:
                raise UserError(
                    f"{where}: has no trained score head ({', '.join(sorted(info['missing_keys']))} missing)"
                )
            if template.chat and not template.prefill and not tokenizer.chat_template:
                raise UserError(f"{where}: its tokenizer has no chat template, and the prompts are chats")
            reward.config.name_or_path = name
        loaded.append(reward)
        tokenizers.append(tokenizer)
    return loaded, tokenizers
