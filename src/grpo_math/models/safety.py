"""What is not loaded unless the recipe allows it: pickled weights and a model's own code."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from grpo_math.errors import UserError

FORMATS = (  # names of weights: as safetensors, and pickled
    (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")),
    (("adapter_model.safetensors",), ("adapter_model.bin",)),
)


def load_arguments(keys: dict) -> dict:
    """What every `from_pretrained` of a model is given, by a recipe's keys of TRL's.

    With `use_safetensors: false` in model_init_kwargs pickled weights are taken where there are no others.
    """
    pickles = (keys.get("model_init_kwargs") or {}).get("use_safetensors") is False
    return {"trust_remote_code": keys.get("trust_remote_code", False), "use_safetensors": None if pickles else True}


def check_files(name: str, revision: str | None, trust_remote_code: bool, use_safetensors: bool | None) -> None:
    """Raise UserError for a model or adapter that brings code or has only pickled weights, where neither is allowed.

    Of what is not there, whoever loads it says so.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig
    from transformers.utils import has_file

    with suppress(OSError):
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
            raise needs_code(name)
    for safe, pickled in FORMATS if use_safetensors else ():
        with suppress(OSError, ValueError):
            found = [file for file in pickled if has_file(name, file, revision=revision)]
            if found and not any(has_file(name, file, revision=revision) for file in safe):
                raise UserError(
                    f"{name} has only pickled weights ({found[0]}), which can run code: convert them to safetensors, "
                    "or allow them with model_init_kwargs: {use_safetensors: false}"
                )


@contextmanager
def without_its_code(name: str) -> Iterator[None]:
    """Of what needs a model's own code, and may not have it, one line."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise needs_code(name) from error


def needs_code(name: str) -> UserError:
    return UserError(
        f"{name} brings Python code of its own, which would run as you: read it, and then allow it with "
        "trust_remote_code: true"
    )
