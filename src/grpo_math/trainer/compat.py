"""Everything of TRL, transformers and vLLM that this package overrides or replaces without their public API.

tests/test_compat.py checks for each that the installed release has it, with this signature and these lines, and that
there are no others: a new release that moves one fails there, by name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """`target` is what is overridden or replaced, `signature` how the installed release declares it (None: an attribute
    without one). `relies_on` are lines that the source of the object before the colon has to contain. `place` is where
    ours is, `until` what makes it unnecessary.
    """

    target: str
    signature: str | None
    place: str
    why: str
    relies_on: tuple[str, ...]
    until: str


GRPO = "trl.trainer.grpo_trainer.GRPOTrainer"
VLLM = "trl.generation.vllm_generation"
PATCHES = (
    Patch(
        target=f"{GRPO}._generate_single_turn",
        signature="(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
        place="trainer/trainer.py",
        why="the seed of a colocated vLLM by the step, so that a resume is exact; no padding after a stop string, on "
        "which TRL trains; 16-bit weights rounded once per generation (40 % of a token's time, docs/performance.md)",
        relies_on=(
            f"{GRPO}._generate_single_turn: is_eos = torch.isin(completion_ids",  # 1.16.0, line 1881
            f"{GRPO}._generate_single_turn: return completion_ids, logprobs",
        ),
        until="TRL passes a seed to vLLM and cuts completions at stop strings",
    ),
    Patch(
        target=f"{GRPO}._tool_call_loop",
        signature="(self, prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields)",
        place="trainer/trainer.py",
        why="time/tools, and the lengths without tool results; evaluations run TRL's loop on their own engine "
        "(generation/conversations.py)",
        relies_on=(
            f"{GRPO}._tool_call_loop: return tool_mask, completions, completion_ids, logprobs, tool_call_count,",
            f"{GRPO}._tool_call_loop: config = self.model.config.text_config if self._is_vlm else self.model.config",
            f"{GRPO}._tool_call_loop: suffix_ids = self._get_tool_suffix_ids(tool_messages)",
            f"{GRPO}._tool_call_loop: while idxs_with_tool and iteration_num < self.max_tool_calling_iterations:",
            f"{GRPO}._tool_call_loop: per_prompt_tools = [self.tools] * len(idxs_with_tool)",
            f"{GRPO}._generate_and_score_completions: observation = environment.reset(**reset_kwargs)",
        ),
        until="TRL's tool loop is a function that takes a generate function",
    ),
    Patch(
        target="transformers.GenerationMixin.generate",
        signature=None,
        place="trainer/trainer.py",
        why="transformers refuses stop strings without a tokenizer, and TRL passes none",
        relies_on=(
            f"{GRPO}._generate_single_turn: **generate_inputs, generation_config=self.generation_config",
        ),  # :1873
        until="TRL passes processing_class to generate",
    ),
    Patch(
        target=f"{GRPO}._calculate_rewards",
        signature="(self, inputs, prompts, completions, completion_ids_list)",
        place="trainer/trainer.py",
        why="time/rewards, the rewards of all processes for the advantages, the verdicts as columns of TRL's "
        "completion logs, whatever the rewards are; completions that end with a stop string, for rewards and logs",
        relies_on=(
            f"{GRPO}._calculate_rewards: rewards_per_func = gather(rewards_per_func)",  # :1681
            f'{GRPO}._generate_and_score_completions: self._logs["extra"][column].extend(gather_object(values))',
            f"{GRPO}._log_completion_extra: self._pending_extra_logs[column].extend(values)",  # :1563
            f'{GRPO}._generate: self._metrics[mode]["completions/clipped_ratio"].append(',  # :2304
            f"{GRPO}._generate_and_score_completions: "
            "rewards_per_func = self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
            f'{GRPO}._generate_and_score_completions: self._logs["completion"].extend(gather_object(completions))',
        ),
        until="TRL times its rewards, has a hook for all completions of a step, and knows stop strings",
    ),
    Patch(
        target=f"{GRPO}._generate",
        signature="(self, prompts: list)",
        place="trainer/trainer.py",
        why="dynamic sampling: groups of equal rewards are replaced before any log-probability is computed",
        relies_on=(
            f"{GRPO}._generate: return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, "
            "images, tool_images",  # :2322
            f"{GRPO}._generate: self.state.num_input_tokens_seen +=",
            f"{GRPO}._generate_and_score_completions: ) = self._generate(prompts)",
            f'{GRPO}._generate_and_score_completions: self._logs["prompt"].extend(gather_object(prompts))',
            f"{GRPO}._generate_and_score_completions: for name in sorted(set(gather_object(list("
            "self._pending_metrics)))):",
            f'{GRPO}._generate_and_score_completions: self._metrics[mode][f"rewards/{{reward_func_name}}/std"].append(',
        ),
        until="TRL samples dynamically",
    ),
    Patch(
        target=f"{GRPO}._generate_and_score_completions",
        signature="(self, inputs: list[dict[str, torch.Tensor | typing.Any]]) -> dict[str, torch.Tensor | typing.Any]",
        place="trainer/trainer.py",
        why="advantages: REINFORCE without a baseline, and 0 where all of a group earn the same (TRL's float32 mean "
        "leaves 1.5e-4, which Adam turns into steps); no pass for importance-sampling ratios that the loss can compute",
        relies_on=(
            f"{GRPO}._generate_and_score_completions: advantages = rewards - mean_grouped_rewards",  # :2785
            f'{GRPO}._generate_and_score_completions: self._logs["advantages"].extend(',  # :2837
            f'{GRPO}._generate_and_score_completions: ["frac_reward_zero_std"].append(',
            f'{GRPO}.training_step: self._metrics["train"]["step_time"].append(',
            f"{GRPO}._generate_and_score_completions: if self.args.gradient_accumulation_steps % generate_every != 0 "
            "or ( self.use_vllm and self.vllm_importance_sampling_correction ):",  # :2643
            f'{GRPO}._generate_and_score_completions: output["sampling_per_token_logps"] = sampling_per_token_logps',
            f'{GRPO}._compute_loss: per_token_loss = per_token_loss * inputs["importance_sampling_ratio"]',
            f"{GRPO}._get_per_token_logps_and_entropies: all_logps.append(outputs.log_probs[:, -logits_to_keep:])",
            f'{GRPO}.__init__: "advantages": deque(maxlen=args.generation_batch_size)',
        ),
        until="TRL subtracts the mean in float64, and takes a function for advantages",
    ),
    Patch(
        target="transformers.PreTrainedTokenizerBase.apply_chat_template",
        signature=None,
        place="models/tokenizer.py",
        why="chat_template_kwargs count for prompt lengths, SFT and evaluation too, and not in TRL's GRPOTrainer alone",
        relies_on=(f"{GRPO}.__init__: self.chat_template_kwargs = args.chat_template_kwargs or {{}}",),  # :788
        until="tokenizers keep arguments of their chat template",
    ),
    Patch(
        target="transformers.PreTrainedTokenizerBase.parse_response",
        signature=None,
        place="models/tokenizer.py",
        why="a call of a thousand open brackets is a RecursionError of json, which would end the run",
        relies_on=("trl.chat_template_utils.parse_response: except (ValueError, TypeError):",),
        until="TRL takes every completion that it cannot read as text",
    ),
    Patch(
        target=f"{VLLM}.LLM",
        signature=None,
        place="generation/vllm_engine.py",
        why="while a trainer is built: the engine's dtype, load_format, the recipe's vllm_engine_kwargs and the run's "
        "seed, none of which TRL passes on",
        relies_on=(f"{VLLM}.VLLMGeneration._init_vllm: self.llm = LLM(",),  # vllm_generation.py:347
        until="GRPOConfig takes arguments for the engine",
    ),
    Patch(
        target=f"{VLLM}.VLLMGeneration._llm_weights_sleeping",
        signature=None,
        place="generation/engines.py",
        why="an evaluation puts a sleeping engine's weights back to sleep, and TRL has to wake them for its next sync",
        relies_on=(f"{VLLM}.VLLMGeneration.sync_weights: self._llm_weights_sleeping",),  # :589
        until="VLLMGeneration has a public sleep",
    ),
)
