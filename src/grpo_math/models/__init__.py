"""Tokenizers, policies, adapters and reward models, loaded as a recipe's TRL keys ask for.

Enters: `Recipe.keys`, or a `ModelSource`. Leaves: what transformers and peft loaded, checked, or a UserError in one
line. Imports errors, data, recipe and runs; torch, transformers and peft only when something is loaded.
"""

from grpo_math.models.policy import for_text, freeze_vision, load_model, policy_arguments, trains_adapter, widen
from grpo_math.models.reward_models import load_reward_models
from grpo_math.models.source import ModelSource, context_of, copy_processor, load_arguments
from grpo_math.models.tokenizer import end_tokens, ends_of, load_tokenizer
from grpo_math.models.tools import Tools, load_tools
from grpo_math.models.weights import check_finite, check_weights, without_weights

__all__ = [
    "ModelSource", "Tools", "check_finite", "check_weights", "context_of", "copy_processor", "end_tokens", "ends_of",
    "for_text", "freeze_vision", "load_arguments", "load_model", "load_reward_models", "load_tokenizer", "load_tools",
    "policy_arguments", "trains_adapter", "widen", "without_weights",
]  # fmt: skip
