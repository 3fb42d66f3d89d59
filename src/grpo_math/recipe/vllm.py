"""The part of a recipe that says how completions are generated, checked like the others (recipe_parts.py)."""

from grpo_math.data.prompts import PromptTemplate
from grpo_math.errors import suggestion
from grpo_math.recipe.schema import class_keys, installed_folder, mapping_of

BY_TRL = {  # the engine's arguments that a recipe sets under TRL's own names
    "model": "model_name_or_path",
    "max_model_len": "vllm_max_model_length",
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "enable_sleep_mode": "vllm_enable_sleep_mode",
    "model_impl": "vllm_model_impl",
    "trust_remote_code": "trust_remote_code",
    "seed": "seed",
    "max_num_seqs": "per_device_train_batch_size and steps_per_generation",
    "quantization": "no key: vLLM takes no new weights for a quantised model",
    "distributed_executor_backend": "no key: TRL needs its own",
    "data_parallel_size": "no key: the copies of a server sample alike, and a group would be identical",
    "logprobs_mode": "no key: the importance-sampling correction needs TRL's",
}


def trainer_dtype(keys: dict) -> str:
    """What a trainer with these keys of TRL's computes in; `auto` is the checkpoint's own."""
    if keys.get("fp16"):
        return "float16"
    return "bfloat16" if keys.get("bf16", True) else keys.get("dtype", "float32")


def check_engine(given, problems: list[str]) -> dict:
    """`vllm_engine_kwargs`: arguments of vLLM's EngineArgs, by name. Their values are vLLM's to judge."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        problems.append(f"vllm_engine_kwargs: want a mapping such as {{enforce_eager: true}}, got {given!r}")
        return {}
    folder = installed_folder("vllm")
    known = list(class_keys(folder / "engine" / "arg_utils.py", "EngineArgs")) if folder else list(given)
    for key in given:
        if key in BY_TRL:
            problems.append(f"vllm_engine_kwargs.{key}: set it with {BY_TRL[key]}")
        elif key not in known:
            problems.append(
                f"vllm_engine_kwargs.{key}: unknown key, {suggestion(key, known, 'vllm_engine_kwargs.', {})}"
            )
    return given


def check_generation(flat: dict, engine: dict, template: PromptTemplate | None, problems: list[str]) -> None:
    """Keys that contradict each other, or do what nobody wants."""
    if template and template.stop and flat.get("mask_truncated_completions"):
        problems.append(
            f"mask_truncated_completions: TRL takes a completion that ends at a stop string {list(template.stop)} for "
            "a truncated one and would mask them all: set it to false, or use a template without stop strings"
        )
    sampling = mapping_of(flat, "generation_kwargs", "{top_k: 50}", problems)
    if "seed" in sampling:
        problems.append(
            "generation_kwargs.seed: seeds every request alike, which makes the completions of a group identical: "
            "leave it out, `seed` reaches vLLM"
        )
    for key in ("stop", "stop_strings"):
        if key in sampling:
            problems.append(f"generation_kwargs.{key}: say it in prompt_template: {{stop: [...]}}, for the grader too")
    if not flat.get("use_vllm"):
        return
    if flat.get("load_in_4bit") or flat.get("load_in_8bit"):
        problems.append(
            "use_vllm: vLLM takes no new weights for a quantised model: set it to false, or leave out load_in_4bit and "
            "load_in_8bit"
        )
    share = flat.get("vllm_gpu_memory_utilization")
    if share is not None and not 0 < share <= 1:
        problems.append(f"vllm_gpu_memory_utilization: want a share of the GPU, above 0 to 1, got {share}")
    for key in ("vllm_max_model_length", "vllm_tensor_parallel_size"):
        if flat.get(key) is not None and flat[key] < 1:
            problems.append(f"{key}: want 1 or more, got {flat[key]}")
    computed = trainer_dtype(flat)
    if engine.get("dtype", computed) != computed:
        problems.append(
            f"vllm_engine_kwargs.dtype: {engine['dtype']}, but the trainer computes in {computed} (bf16, fp16, dtype): "
            "leave it out, the engine follows the trainer"
        )
