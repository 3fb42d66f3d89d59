"""What a recipe must not hold."""

import re
from collections.abc import Iterator

from grpo_math.recipe.schema import mapping_of

SECRET = re.compile(r"(.*_)?(api_?key|password|secret)|((hf|auth|access|use_auth|wandb)_)?token", re.IGNORECASE)


def check_safety(raw: dict, problems: list[str]) -> None:
    """The run folder keeps the recipe and the command line, so neither may hold a secret."""
    problems += [
        f"{key}: a secret would be kept in the run folder: set it in the environment (HF_TOKEN, WANDB_API_KEY, or a "
        "variable that your own code reads)"
        for key in secret_keys(raw)
    ]
    if "trust_remote_code" in mapping_of(raw, "model_init_kwargs", "{use_safetensors: false}", problems):
        problems.append(
            "model_init_kwargs.trust_remote_code: set it with trust_remote_code, for tokenizer and vLLM too"
        )


def secret_keys(content, where: str = "") -> Iterator[str]:
    """The dotted names of all keys with a text that a secret's name stands before."""
    if isinstance(content, list):
        for place, value in enumerate(content):
            yield from secret_keys(value, f"{where}[{place}]")
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, str) and SECRET.fullmatch(str(key)):
            yield name
        yield from secret_keys(value, name)
