"""Fixes for keys of other trainers, of older releases and of TRL: the key to use here instead."""

OTHER_NAMES = {  # of keys with one meaning everywhere
    "beta": "kl_coef kl_beta",
    "dtype": "torch_dtype",
    "epsilon": "clip_range clip_eps cliprange",
    "learning_rate": "lr",
    "max_completion_length": "max_new_tokens max_tokens",
    "max_steps": "n_grpo_steps",
    "model_name_or_path": "model model_name sft_model",
    "num_generations": "n_samples n_samples_per_prompt rollout_n group_size num_return_sequences",
    "num_iterations": "epochs_per_rollout_batch",
    "num_train_epochs": "epochs num_epochs",
    "output_dir": "save_dir",
    "per_device_train_batch_size": "batch_size",
    "prompts_per_step (each of num_generations completions)": "train_batch_size rollout_batch_size",
}
RENAMED = {name: key for key, names in OTHER_NAMES.items() for name in names.split()} | {
    "max_prompt_length": "dataset.max_prompt_tokens (longer prompts are dropped and counted)",
    "max_samples": "dataset.max_samples, or eval.max_samples",
    "num_samples": "dataset.max_samples (problems), or num_generations (completions per prompt)",
    "train_data": "dataset: {name: json, path: FILE}",
    "val_data": "eval: {datasets: {name: json, path: FILE}}",
    "use_std_normalization": "scale_rewards: group (true) or none (false)",
    "no_4bit": "load_in_4bit: false",
    "no_lora": "use_peft: false",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of the run)",
    "evaluation_strategy": "eval: {every: 10}",
    "overwrite_output_dir": "another output_dir, or resume_from_checkpoint: auto",
    "reward_funcs": "rewards: {correctness: {weight: 1.0}}",
    "reward_correct": "rewards: {correctness: {correct: 1.0}}",
    "reward_wrong": "rewards: {correctness: {wrong: -1.0}}",
    "dataset_name": "dataset: {name: gsm8k}",
    "dataset_config": "dataset: {config: main}",
    "dataset_train_split": "dataset: {split: train}",
    "layout": "it with grpo-math launch, which starts the training",
    "dryrun": "--dry_run",
    "vllm_device": "vllm_mode: colocate or server",
}
RENAMED_IN_EVAL = {
    "every_steps": "eval.every",
    "eval_steps": "eval.every",
    "dataset": "eval.datasets",
    "n": "eval.samples",
    "num_samples": "eval.samples (completions per problem), or eval.max_samples (problems)",
    "max_tokens": "eval.max_completion_length",
    "max_new_tokens": "eval.max_completion_length",
}
LOSSES = {  # values of loss_type
    "reinforce_with_baseline": "use loss_type: grpo with baseline: group, the default",
    "no_baseline": "use loss_type: grpo with baseline: none",
    "grpo_clip": "use loss_type: grpo with num_iterations: 4 and epsilon: 0.2",
}
STRUCTURED = (
    "leave it out and reward the form instead: evaluations generate without it, and the importance-sampling correction "
    "scales the gradient of completions that the policy would not write by itself to about 0"
)
WITHOUT_EFFECT = {  # TRL's keys that would have none here, or the wrong one, by what to do instead
    "use completions: {every: 10}, which keeps them in the run's folder, for trackers and the report too": (
        "log_completions log_completions_hub_repo log_unique_prompts num_completions_to_print"
    ),
    "give the weight with the reward, rewards: {correctness: {weight: 1.0}}": "reward_weights",
    "use eval: {every: 10}": "eval_strategy eval_steps",
    "use eval: {every: 10}: its first evaluation is after that many steps": "eval_delay",
    "use eval: {before_after: true}": "do_eval eval_on_start",
    "use eval: {samples: 4, temperature: 0.7}": "num_generations_eval",
    "use eval: {batch_size: 32}": "per_device_eval_batch_size eval_accumulation_steps",
    "use eval: {every: 20, best: true}: the best model is that of the highest accuracy": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "use eval: {every: 10}: evaluations generate, they compute no loss": (
        "prediction_loss_only batch_eval_metrics bf16_full_eval eval_do_concat_batches eval_packing "
        "eval_use_gather_object fp16_full_eval include_for_metrics label_names"
    ),
    "leave it out: the command selects training or evaluation": "do_train do_predict",
    "leave it out: accelerate launch sets it": "local_rank",
    "leave it out: the problems are text": "log_multimodal",
    "leave it out: only the final model is pushed, at the end": "hub_always_push",
    "set HF_TOKEN in the environment, so that no file contains it": "hub_token",
    "leave it out: rewards need the columns": "remove_unused_columns",
    "leave it out: a resume continues with the problems that were not trained on": "ignore_data_skip",
    "use shuffle_dataset: false for the order of the dataset": "train_sampling_strategy length_column_name",
    "set it in the accelerate config of the layout": "parallelism_config",
    "leave it out: TRL's trainers support only CAUSAL_LM": "lora_task_type",
    "save the template in the model's folder, so that SFT, GRPO and evaluation see the same": "chat_template_path",
    "use dataset: {name: json, fields: {question: COLUMN, worked: COLUMN}}": "dataset_text_field",
    "leave it out: it ignores stop strings, and with bf16 casts the policy to bfloat16 for the rest of the run": (
        "use_transformers_continuous_batching use_transformers_paged transformers_continuous_batching_config"
    ),
    STRUCTURED: "vllm_structured_outputs_regex",
    "use vllm_importance_sampling_clip_max": "vllm_importance_sampling_cap",
}
GENERATION = {  # keys of generation_kwargs that are refused, by what to do instead
    "set it with the recipe's temperature, by which TRL computes probabilities too": "temperature",
    "set it with max_completion_length": "max_new_tokens max_tokens max_length",
    "set it with prompt_template: {stop: [...]}, for the grader too": "stop stop_strings",
    "leave it out: a group is num_generations completions, each sampled once": (
        "do_sample num_beams num_return_sequences n"
    ),
    STRUCTURED: "structured_outputs",
    "it seeds every request, so the completions of a group are identical: leave it out, `seed` is passed to vLLM": (
        "seed"
    ),
}
REFUSED, SAMPLING = (
    {key: fix for fix, keys in table.items() for key in keys.split()} for table in (WITHOUT_EFFECT, GENERATION)
)
BY_TRL = {  # arguments of vLLM's engine that a recipe sets under TRL's own names
    "model": "model_name_or_path",
    "max_model_len": "vllm_max_model_length",
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "enable_sleep_mode": "vllm_enable_sleep_mode",
    "model_impl": "vllm_model_impl",
    "trust_remote_code": "trust_remote_code",
    "seed": "seed",
    "max_num_seqs": "per_device_train_batch_size and steps_per_generation",
    "quantization": "leave it out: vLLM cannot update the weights of a quantised model",
    "distributed_executor_backend": "leave it out: TRL sets it",
    "data_parallel_size": "leave it out: all copies would sample the same completions",
    "logprobs_mode": "leave it out: the importance-sampling correction needs TRL's",
}
