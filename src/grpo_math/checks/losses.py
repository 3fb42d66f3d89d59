"""Settings of the loss that TRL refuses only after loading the model, ignores, or that make another method of it.

What each loss is: docs/losses.md.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator

from grpo_math.checks.findings import Finding, Subject, error, warning
from grpo_math.models import trains_adapter
from grpo_math.recipe.trl import trl_keys

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # losses that clip the ratio to 1 - epsilon ... 1 + epsilon_high
READ_WITH: dict[str, tuple[str, tuple]] = {  # keys, and with which values of another one TRL reads them (): any but 0
    "epsilon delta": ("loss_type", CLIPPED),
    "epsilon_high": ("loss_type", (*CLIPPED, "cispo")),
    "sapo_temperature_pos sapo_temperature_neg": ("loss_type", ("sapo",)),
    "vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg": ("loss_type", ("vespo",)),
    "scale_rewards": ("multi_objective_aggregation", ("sum_then_normalize",)),
    "use_bias_correction_kl": ("beta", ()),
    "ref_model_sync_steps ref_model_mixup_alpha": ("sync_ref_model", ()),
    "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target": ("use_adaptive_entropy", ()),
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_min vllm_importance_sampling_clip_max": (
        "vllm_importance_sampling_correction", ()
    ),
}  # fmt: skip
Rule = tuple[Callable[[str, str], Finding], Callable[[dict], object], str, str]
RULES: tuple[Rule, ...] = (  # the level, when it holds of TRL's keys or their defaults, what is wrong, what to change
    (error, lambda k: k["loss_type"] == "vespo" and corrected(k) and "sequence" in k["vllm_importance_sampling_mode"],
     "vllm_importance_sampling_mode: {vllm_importance_sampling_mode}: TRL refuses it for loss_type: vespo, which takes "
     "the ratios of tokens",
     "vllm_importance_sampling_mode: token_truncate"),
    (error, lambda k: corrected(k)
     and not k["vllm_importance_sampling_clip_min"] <= 1 <= k["vllm_importance_sampling_clip_max"],
     "vllm_importance_sampling_clip_min, vllm_importance_sampling_clip_max: they exclude 1, the ratio where vLLM and "
     "the trainer agree",
     "vllm_importance_sampling_clip_min: null, vllm_importance_sampling_clip_max: 3.0"),
    (error, lambda k: k["sync_ref_model"] and not k["beta"],
     "sync_ref_model: TRL refuses it without a reference model (beta: 0)", "sync_ref_model: false"),
    (error, lambda k: k["sync_ref_model"] and k["beta"] and trains_adapter(k),
     "sync_ref_model: TRL refuses it for an adapter, whose reference is its base model", "sync_ref_model: false"),
    (error, lambda k: k["use_liger_kernel"] and importlib.util.find_spec("liger_kernel") is None,
     "use_liger_kernel: liger-kernel is not installed", "use_liger_kernel: false"),
    (error, lambda k: k["use_liger_kernel"] and (k["liger_kernel_config"] or {}).get("fused_linear_cross_entropy"),
     "liger_kernel_config: TRL refuses fused_linear_cross_entropy, it has its own head",
     "liger_kernel_config: {{fused_linear_cross_entropy: false}}"),
    (warning, lambda k: k["loss_type"] == "luspo" and k["importance_sampling_level"] == "token",
     "loss_type: luspo with the ratios of tokens is not LUSPO, which clips the ratio of a whole completion",
     "importance_sampling_level: sequence"),
    (warning, lambda k: sequence(k) and k["loss_type"] in ("bnpo", "dr_grpo", "dapo", "cispo"),
     "importance_sampling_level: sequence with loss_type: {loss_type} is not GSPO: long completions count more",
     "loss_type: grpo"),
    (warning, lambda k: sequence(k) and k["loss_type"] in ("sapo", "vespo"),
     "importance_sampling_level: sequence: loss_type: {loss_type} is defined by the ratios of tokens",
     "importance_sampling_level: token"),
    (warning, lambda k: sequence(k) and k["loss_type"] in CLIPPED and k["epsilon"] > 0.1,
     "importance_sampling_level: sequence with epsilon {epsilon:g} clips nothing: a completion's ratio stays near 1",
     "epsilon: 3.0e-4, epsilon_high: 4.0e-4"),
    (warning, lambda k: sequence(k) and k["beta"] and k["use_bias_correction_kl"],
     "use_bias_correction_kl: with importance_sampling_level: sequence it does not correct the bias",
     "use_bias_correction_kl: false"),
    (warning, lambda k: k["loss_type"] == "cispo" and k["epsilon_high"] <= 1,
     "loss_type: cispo with epsilon_high {epsilon_high:g} clips nearly everything: it is the limit of the ratio itself",
     "epsilon_high: 5.0"),
    (warning, lambda k: k["loss_type"] in CLIPPED and k["delta"] and k["delta"] <= 1 + k["epsilon_high"],
     "delta: {delta:g} is not above 1 + epsilon_high, and clips in its place", "delta: 4.0"),
)  # fmt: skip


def losses(subject: Subject) -> Iterator[Finding]:
    """The findings, each with a fix that removes it."""
    given = subject.recipe.keys
    keys = with_defaults(given)
    unset = {"epsilon_high": keys["epsilon"], "vllm_importance_sampling_clip_min": 0.0}
    unset["vllm_importance_sampling_clip_max"] = math.inf
    keys |= {name: meant for name, meant in unset.items() if keys[name] is None}
    for finding, holds, says, fix in RULES:
        if holds(keys):
            yield finding(says.format_map(keys), fix.format_map(keys))
    for names, (other, values) in READ_WITH.items():
        unread = [name for name in names.split() if name in given]
        if unread and (keys[other] not in values if values else not keys[other]):
            says = f"{', '.join(unread)}: no effect with {other}: {str(keys[other]).lower()}"
            yield warning(says, ", ".join(f"{name}: null" for name in unread))
    if keys["use_peft"] and "lm_head" in (targets := keys["lora_target_modules"] or []):
        rest = ", ".join(target for target in targets if target != "lm_head")
        says = "lora_target_modules: TRL refuses lm_head, whose weight it reads without the adapter"
        yield error(says, f"lora_target_modules: {f'[{rest}]' if rest else 'null'}")
    if given.get("router_aux_loss_coef") and not hasattr(
        subject.model_config.get_text_config(), "output_router_logits"
    ):
        says = "router_aux_loss_coef: TRL refuses it for a model that is not a mixture of experts"
        yield error(says, "router_aux_loss_coef: null")


def with_defaults(given: dict) -> dict:
    return {name: key.default for keys in trl_keys("GRPO") for name, key in keys.items()} | given


def sequence(k: dict) -> bool:
    return k["importance_sampling_level"] == "sequence"


def corrected(k: dict) -> bool:
    """Whether TRL weighs vLLM's completions by importance."""
    return k["use_vllm"] and k["vllm_importance_sampling_correction"]
