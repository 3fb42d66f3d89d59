"""Stand-ins for the models that people train: their architectures and chat templates, small, with random weights."""

from pathlib import Path
from typing import Any

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
SMALL_VISION = {
    "Qwen3_5ForConditionalGeneration": {
        "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
        "num_position_embeddings": 16,
    },
    "Gemma3ForConditionalGeneration": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
}  # fmt: skip
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
# As SmolLM3's, which TRL does not ship: it thinks unless it is told not to.
SWITCH = """{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% if not enable_thinking %}<think>

</think>
{% endif %}{% endif %}"""
ALWAYS = SWITCH.partition("{% if not enable_thinking %}")[0] + "<think>\n{% endif %}"  # as DeepSeek-R1's distillations


def config_of(architecture: str, vocabulary: int, vision: dict | None = None, **sizes: Any) -> Any:
    """The config of this class of transformers, with these sizes of its text model and of its vision tower."""
    import transformers

    kind = getattr(transformers, architecture)
    text = SMALL | {"vocab_size": vocabulary, "tie_word_embeddings": True, "pad_token_id": 0} | sizes
    if "Qwen3_5" in architecture:
        layers = text["num_hidden_layers"]
        text["layer_types"] = ["linear_attention", "linear_attention", "linear_attention", "full_attention"][
            -layers:
        ] * (layers // 4 or 1)
        text = LINEAR | text
    if architecture not in SMALL_VISION:
        return kind.config_class(**text, architectures=[architecture])
    tower = SMALL_VISION[architecture] | (vision or {})
    if "Qwen3_5" in architecture:
        tower["out_hidden_size"] = text["hidden_size"]
    places = {"tie_word_embeddings": True, "architectures": [architecture]}
    if "Gemma3" in architecture:
        places |= {"mm_tokens_per_image": 4}
    return kind.config_class(text_config=text, vision_config=tower, **places)


def template_of(name: str) -> str:
    """A model's own chat template, as TRL ships it, or one of ours."""
    import trl

    ours = {"switch": SWITCH, "always": ALWAYS}
    return ours.get(name) or (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def save_stand_in(
    architecture: str, template: str | None, tokenizer: Any, folder: Path, dtype: str = "float32", **sizes: Any
) -> Path:
    """A folder with random weights, and a tokenizer with this chat template (None: the tokenizer's)."""
    import copy

    import torch
    import transformers

    torch.manual_seed(0)
    config = config_of(architecture, sizes.pop("vocab_size", len(tokenizer)), **sizes)
    getattr(transformers, architecture)(config).to(getattr(torch, dtype)).save_pretrained(folder)
    own = copy.deepcopy(tokenizer)
    own.chat_template = template_of(template) if template else own.chat_template
    own.save_pretrained(folder)
    return folder
