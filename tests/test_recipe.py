"""Every mistake at the door is one line that names the fix, and all are reported at once."""

import argparse
import json
import re
import subprocess
import sys
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from grpo_math.__main__ import Parser, add_keys, dispatch
from grpo_math.errors import UserError
from grpo_math.grading import STYLES
from grpo_math.recipe.file import StrictLoader, merge
from grpo_math.recipe.hints import LOSSES, REFUSED, RENAMED, RENAMED_IN_EVAL
from grpo_math.recipe.parts import EvalSpec, TemplateKeys
from grpo_math.recipe.recipe import CHOICES, RANGES, load_recipe, recipe_keys
from grpo_math.recipe.schema import json_schema
from grpo_math.recipe.trl import DEFAULTS, trl_keys

GOOD = """\
dataset: {name: gsm8k}
rewards: {correctness: {}}
model_name_or_path: some/model
"""


def load(tmp_path, text: str, *arguments: str):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load_recipe(["--config", str(path), *arguments])


def complaints(tmp_path, text: str, *arguments: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *arguments)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


BROKEN = [
    # an unknown key names the nearest known one
    ("learning_rat: 1.0", "r.yaml: learning_rat: unknown key, did you mean learning_rate?"),
    ("reward: {a: {}}", "r.yaml: reward: unknown key, did you mean rewards?"),
    ("alarms: {stop_on: [nan, lenght]}", "r.yaml: alarms.stop_on: unknown value 'lenght': use one of nan, reward, zero_std, truncated, entropy, kl, importance, timeouts, length, spike, composition, diverged, tools"),
    ("alarms: {stop_on: nan}", "r.yaml: alarms.stop_on: expected a list of 'nan', 'reward', 'zero_std', 'truncated', 'entropy', 'kl', 'importance', 'timeouts', 'length', 'spike', 'composition', 'diverged', 'tools', got 'nan': write [nan]"),
    ("alarms: {steps: 0, kl: -1}", "r.yaml: alarms.steps: expected at least 1, got 0\nr.yaml: alarms.kl: expected at least 0, got -1"),
    ("completions: {every: -1}", "r.yaml: completions.every: expected at least 0, got -1"),
    ("completions: 10", "r.yaml: completions: expected a mapping such as {every: 10}, got 10"),
    ("on_reward_error: ignore", "r.yaml: on_reward_error: unknown value 'ignore': use one of stop, skip"),
    ("preflight: 1", "r.yaml: preflight: expected true or false, got 1"),
    ("prompts_per_step: 0", "r.yaml: prompts_per_step: expected at least 1, got 0"),
    ("prompts_per_step: 1.5", "r.yaml: prompts_per_step: expected an integer or null, got 1.5"),
    ("vllm_engine_kwargs: [1]", "r.yaml: vllm_engine_kwargs: expected a mapping, got [1]"),
    ("dataset: {name: gsm8k, pass_rate: {min: 0.5, max: 0.1, file: f}}", "r.yaml: dataset.pass_rate: expected 0 <= min <= max <= 1, got min 0.5 and max 0.1"),
    ("dataset: {name: gsm8k, pass_rate: {min: 0.5}}", "r.yaml: dataset.pass_rate.file: missing, expected the folder of grpo-math evaluate --split train --samples 8"),
    ("dataset: {name: gsm8k, params: {}}", "r.yaml: dataset.params: unknown key, use one of name, path, split, config, max_samples, shuffle_seed, max_prompt_tokens, weight, decontaminate, shuffle_answers, pass_rate"),
    ("zzz: 1", "r.yaml: zzz: unknown key, not a key of TRL or grpo-math"),
    # a key of another trainer or an older TRL names its successor
    ("max_prompt_length: 512", "r.yaml: max_prompt_length: unknown key, use dataset.max_prompt_tokens (longer prompts are dropped and counted)"),
    ("kl_coef: 0.1", "r.yaml: kl_coef: unknown key, use beta"),
    ("n_samples: 8", "r.yaml: n_samples: unknown key, use num_generations"),
    ("group_size: 8", "r.yaml: group_size: unknown key, use num_generations"),
    ("num_return_sequences: 8", "r.yaml: num_return_sequences: unknown key, use num_generations"),
    ("warmup_ratio: 0.1", "r.yaml: warmup_ratio: unknown key, use warmup_steps (a number below 1 is a share of the run)"),
    ("reward_weights: [1.0]", "r.yaml: reward_weights: not supported, give the weight with the reward, rewards: {correctness: {weight: 1.0}}"),
    ("hub_token: true", "r.yaml: hub_token: not supported, set HF_TOKEN in the environment, so that no file contains it"),
    ("hub_token: hf_secret", "r.yaml: hub_token: a secret would be saved in the run folder: set it in the environment (HF_TOKEN, WANDB_API_KEY, or a variable that your own code reads)"),
    # values that TRL would meet late
    ("temperature: 0", "r.yaml: temperature: expected a number from 0.001 to 100, got 0"),
    ("num_generations: 1", "r.yaml: num_generations: expected at least 2, got 1"),
    ("per_device_train_batch_size: 0", "r.yaml: per_device_train_batch_size: expected at least 1, got 0"),
    ("learning_rate: -1", "r.yaml: learning_rate: expected a number from 0 to 1, got -1"),
    ("loss_type: ciispo", "r.yaml: loss_type: unknown value 'ciispo': use one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo"),
    ("scale_rewards: gruop", "r.yaml: scale_rewards: unknown value 'gruop': use one of group, batch, none"),
    ("importance_sampling_level: seq", "r.yaml: importance_sampling_level: unknown value 'seq': use one of token, sequence"),
    ("vllm_mode: collocate", "r.yaml: vllm_mode: unknown value 'collocate': use one of colocate, server"),
    ("lora_r: 8\nlora_alpha: 16", "r.yaml: lora_r, lora_alpha: no effect without LoRA: set use_peft: true as well"),
    ("chat_template_path: new.jinja", "r.yaml: chat_template_path: not supported, save the template in the model's folder, so that SFT, GRPO and evaluation see the same"),
    ("max_steps: -5", "r.yaml: max_steps: expected at least 1 (or -1 for num_train_epochs), got -5"),
    ("max_steps: 0\nseed: -1", "r.yaml: seed: expected a number from 0 to below 4294967296, got -1\nr.yaml: max_steps: expected at least 1 (or -1 for num_train_epochs), got 0"),
    ("num_train_epochs: 0", "r.yaml: num_train_epochs: expected more than 0, got 0"),
    ("logging_steps: -1\nsave_steps: 0", "r.yaml: logging_steps: expected more than 0, got -1\nr.yaml: save_steps: expected more than 0, got 0"),
    ("save_total_limit: 0", "r.yaml: save_total_limit: expected at least 1, got 0"),
    ("warmup_steps: -0.1", "r.yaml: warmup_steps: expected at least 0, got -0.1"),
    ("gradient_accumulation_steps: 0\ngeneration_batch_size: 0", "r.yaml: gradient_accumulation_steps: expected at least 1, got 0\nr.yaml: generation_batch_size: expected at least 1, got 0"),
    ("adam_beta2: 1", "r.yaml: adam_beta2: expected a number from 0 to below 1, got 1"),
    ("weight_decay: -0.1", "r.yaml: weight_decay: expected at least 0, got -0.1"),
    ("min_p: 2\ntop_k: -5", "r.yaml: min_p: expected a number from 0 to 1, got 2\nr.yaml: top_k: expected at least 0, got -5"),
    ("dataloader_num_workers: -1", "r.yaml: dataloader_num_workers: expected at least 0, got -1"),
    ("repetition_penalty: 0", "r.yaml: repetition_penalty: expected a number from 0.001 to 100, got 0"),
    # types
    ("learning_rate: fast", "r.yaml: learning_rate: expected a number, got 'fast'"),
    ("max_steps: 1.5", "r.yaml: max_steps: expected an integer, got 1.5"),
    ("bf16: 'yes'", "r.yaml: bf16: expected true or false or null, got 'yes'"),
    ("use_vllm: 1", "r.yaml: use_vllm: expected true or false, got 1"),
    ("lora_target_modules: q_proj", "r.yaml: lora_target_modules: expected a list of strings or null, got 'q_proj': write [q_proj]"),
    ("run_name: 5", "r.yaml: run_name: expected a string or null, got 5: write \"5\""),
    ("generation_kwargs: [1]", "r.yaml: generation_kwargs: expected a mapping or null, got [1]"),
    ("prompt_template: {stop: ['']}", "r.yaml: prompt_template.stop: an empty string would end every completion immediately: leave it out"),
    ("generation_kwargs: {temperature: 0.5}", "r.yaml: generation_kwargs.temperature: set it with the recipe's temperature, by which TRL computes probabilities too"),
    ("generation_kwargs: {do_sample: false}", "r.yaml: generation_kwargs.do_sample: leave it out: a group is num_generations completions, each sampled once"),
    ("chat_template_kwargs: {tokenize: true}", "r.yaml: chat_template_kwargs.tokenize: not a variable of the chat template, TRL sets it: leave it out"),
    ("use_peft: true\nlora_alpha: 0", "r.yaml: lora_alpha: expected at least 1, got 0"),
    ("sapo_temperature_neg: 0", "r.yaml: sapo_temperature_neg: expected more than 0, got 0"),
    ("delta: 1", "r.yaml: delta: expected more than 1, got 1"),
    ("off_policy_mask_threshold: 0", "r.yaml: off_policy_mask_threshold: expected more than 0, got 0"),
    ("use_transformers_paged: true", "r.yaml: use_transformers_paged: not supported, leave it out: it ignores stop strings, and with bf16 casts the policy to bfloat16 for the rest of the run"),
    ("generation_kwargs: {structured_outputs: {regex: a}}", "r.yaml: generation_kwargs.structured_outputs: leave it out and reward the form instead: evaluations generate without it, and the importance-sampling correction scales the gradient of completions that the policy would not write by itself to about 0"),
    ("lora_task_type: SEQ_CLS", "r.yaml: lora_task_type: not supported, leave it out: TRL's trainers support only CAUSAL_LM"),
    ("lr_scheduler_kwargs: num_cycles", "r.yaml: lr_scheduler_kwargs: expected a mapping or null, got 'num_cycles'"),
    ("vllm_importance_sampling_mode: mask", "r.yaml: vllm_importance_sampling_mode: unknown value 'mask': use one of token_truncate, token_mask, sequence_truncate, sequence_mask"),
    ("log_level: loud", "r.yaml: log_level: unknown value 'loud': use one of detail, debug, info, warning, error, critical, passive"),
    ("pad_to_multiple_of: 0", "r.yaml: pad_to_multiple_of: expected at least 1, got 0"),
    ("ignore_data_skip: true", "r.yaml: ignore_data_skip: not supported, leave it out: a resume continues with the problems that were not trained on"),
    ("train_sampling_strategy: sequential", "r.yaml: train_sampling_strategy: not supported, use shuffle_dataset: false for the order of the dataset"),
    # dataset
    ("dataset: gsm8k", "r.yaml: dataset: expected a mapping such as {name: gsm8k}, got 'gsm8k'"),
    ("dataset: {name: gsm9k}", "r.yaml: dataset.name: unknown dataset 'gsm9k' (did you mean gsm8k?): `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("dataset: {name: GSM8K}", "r.yaml: dataset.name: unknown dataset 'GSM8K' (did you mean gsm8k?): `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("dynamic_sampling: {rounds:3}", "r.yaml: dynamic_sampling.rounds:3: unknown key, add a space after the colon: rounds: 3"),
    ("dataset: {name: gsm8k, max_sample: 3}", "r.yaml: dataset.max_sample: unknown key, did you mean dataset.max_samples?"),
    ("dataset: {name: gsm8k, levels: [3]}", "r.yaml: dataset.levels: unknown key, use one of name, path, split, config, max_samples, shuffle_seed, max_prompt_tokens, weight, decontaminate, shuffle_answers, pass_rate"),
    ("dataset: {name: math, levels: 3}", "r.yaml: dataset.levels: expected a list of integers or null, got 3: write [3]"),
    ("dataset: {name: gsm8k, path: ./nowhere}", "r.yaml: dataset.path: no file or folder ./nowhere"),
    ("dataset: {name: json, path: rows.jsonl}", "r.yaml: dataset.path: no file or folder rows.jsonl"),
    ("dataset: {name: org/set}", "r.yaml: dataset.name: unknown dataset 'org/set': `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("dataset: {name: math500}", "r.yaml: dataset.split: no split 'train' of math500: use test"),
    ("dataset: {name: gsm_plus, split: 'test[:10%] + testmin'}", "r.yaml: dataset.split: no split 'testmin' of gsm_plus: use test or testmini"),
    ("dataset: {name: gsm8k, decontaminate: [aime42]}", "r.yaml: dataset.decontaminate: unknown evaluation set 'aime42' (did you mean aime25?): `grpo-math datasets` lists them"),
    ("dataset: {name: gsm8k, decontaminate: [deepscaler]}", "r.yaml: dataset.decontaminate: unknown evaluation set 'deepscaler': `grpo-math datasets` lists them"),
    ("dataset: {name: gsm8k, decontaminate: aime24}", "r.yaml: dataset.decontaminate: expected true or false or a list of strings, got 'aime24': write [aime24]"),
    ("dataset: {name: deepmath}\neval: {every: 5}", "r.yaml: eval.datasets: missing: deepmath has no split 'test': name those to evaluate on, eval: {datasets: [math500]}"),
    ("dataset: {name: deepmath}\neval: {datasets: deepmath}", "r.yaml: eval.datasets.split: no split 'test' of deepmath: use train"),
    ("dataset: {name: deepmath}\neval: {datasets: {name: deepmath, split: train}}", "r.yaml: eval.datasets: these are the training problems: name other datasets, or another split"),
    ("dataset: {name: aime24}\neval: {datasets: aime24}", "r.yaml: eval.datasets: these are the training problems: name other datasets, or another split"),
    ("dataset: {name: aime24}\neval: {every: 5}", "r.yaml: eval.split: train is the training split: name another one"),
    ("dataset: {name: reasoning_gym}", "r.yaml: dataset.task: missing, expected a string"),
    ("dataset: {path: 'nowhere.py:load'}", "r.yaml: dataset.path: no file nowhere.py: paths are relative to the folder where the command runs"),
    ("dataset: {name: [gsm8k]}", "r.yaml: dataset.name: expected a string, got ['gsm8k']"),
    ("dataset: {name: gsm8k, path: [a]}", "r.yaml: dataset.path: expected a string, got ['a']"),
    ("dataset: [{name: gsm8k}, {name: mat}]", "r.yaml: dataset[1].name: unknown dataset 'mat' (did you mean math?): `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("dataset:", "r.yaml: dataset: missing, add dataset: {name: gsm8k}"),
    ("dataset: {name: gsm8k, max_samples: 0}", "r.yaml: dataset.max_samples: expected at least 1, got 0"),
    ("grading: {timeout: 0}", "r.yaml: grading.timeout: expected at least 0.1, got 0"),
    ("grading: {workers: 0}", "r.yaml: grading.workers: expected at least 1, got 0"),
    ("grading: {timeuot: 3}", "r.yaml: grading.timeuot: unknown key, did you mean grading.timeout?"),
    ("grading: fast", "r.yaml: grading: expected a mapping such as {timeout: 2.0}, got 'fast'"),
    ("eval: {batch_size: -1}", "r.yaml: eval.batch_size: expected at least 1, got -1"),
    ("? [a, b]\n: 1", "r.yaml, line {n-1}: not YAML (a key must be a word)"),
    ("1: x", "r.yaml: 1: unknown key, not a key of TRL or grpo-math"),
    # template
    ("prompt_template: box", "r.yaml: prompt_template: unknown template 'box': use one of boxed, qwen_math, r1_zero, question_only, gsm8k_hash, or a mapping with user: and answer_style:"),
    ("prompt_template: {user: 'Solve it.'}", "r.yaml: prompt_template.user: has no {question}: put it where the question goes"),
    ("prompt_template: {answer_style: tag}", "r.yaml: prompt_template.answer_style: unknown value 'tag': use one of boxed, hash, answer_tag, fallback"),
    ("prompt_template: {stop: END}", "r.yaml: prompt_template.stop: expected a list of strings, got 'END': write [END]"),
    ("prompt_template: r1_zero\nmask_truncated_completions: true", "r.yaml: mask_truncated_completions: TRL treats a completion that ends at a stop string ['</answer>'] as truncated, and would mask them all: set it to false, or use a template without stop strings"),
    # rewards
    ("rewards: correctness", "r.yaml: rewards: missing, add rewards: {correctness: {weight: 1.0}}"),
    ("rewards: {corectness: {}}", "r.yaml: rewards.corectness: not a shipped reward, did you mean correctness? (your own: path: my_rewards.py:function)"),
    ("rewards: {format: {wieght: 1}}", "r.yaml: rewards.format.wieght: unknown key, did you mean rewards.format.weight?"),
    ("rewards: {format: 0.5}", "r.yaml: rewards.format: expected a mapping such as {weight: 1.0}, or false, got 0.5"),
    ("rewards: {format: {weight: heavy}}", "r.yaml: rewards.format.weight: expected a number, got 'heavy'"),
    ("rewards: {format: {weight: 0}}", "r.yaml: rewards: every weight or scale is 0, so there is nothing to learn: set one to another value"),
    ("rewards: {mine: {path: 'nowhere.py:f'}}", "r.yaml: rewards.mine.path: no file nowhere.py: paths are relative to the folder where the command runs"),
    ("rewards: {mine: {path: nowhere.py}}", "r.yaml: rewards.mine.path: 'nowhere.py': expected file.py:function or package.module:function"),
    ("rewards: {mine: {path: 'no_such_package:f'}}", "r.yaml: rewards.mine.path: no module 'no_such_package' is installed (for a file, write no_such_package.py)"),
    ("rewards: {format: {gate: correctness}}", "r.yaml: rewards.format.gate: no other reward 'correctness' in this recipe (it has none)"),
    ("rewards: {format: {gate: format}, correctness: {}}", "r.yaml: rewards.format.gate: no other reward 'format' in this recipe (it has correctness)"),
    ("rewards: {a: {reward_model: org/m}, format: {gate: a}}", "r.yaml: rewards.format.gate: a is a reward model: name a reward function without a gate"),
    ("rewards: {correctness: {gate: format}, format: {gate: correctness}}", "r.yaml: rewards.correctness.gate: format has a gate itself: name a reward function without a gate\nr.yaml: rewards.format.gate: correctness has a gate itself: name a reward function without a gate"),
    ("rewards: {a: {reward_model: org/m, scale: 10}}", "r.yaml: rewards.a.scale: not supported for a reward model, whose score TRL uses unchanged: use weight"),
    ("rewards: {a: {reward_model: ./nowhere}}", "r.yaml: rewards.a.reward_model: no folder ./nowhere"),
    ("rewards: {a: {reward_model: 5}}", "r.yaml: rewards.a.reward_model: expected a string or null, got 5: write \"5\""),
    ("rewards: {correctness: {grades: []}}", "r.yaml: rewards.correctness.grades: unknown key, did you mean rewards.correctness.gate?"),
    ("rewards: {correctness: {no_answer: bad}}", "r.yaml: rewards.correctness.no_answer: expected a number or null, got 'bad'"),
    ("rewards: {correctness: {scale: 0}}", "r.yaml: rewards: every weight or scale is 0, so there is nothing to learn: set one to another value"),
    ("rewards: {correctness: {}, format: {gate: correctness, scale: -1}}", "r.yaml: rewards.format.gate: a gate withholds positive scores, which a negative weight or scale turns into penalties: make both positive, and negate the reward's own settings instead"),
    ("rewards: {format: {weight: .nan}}", "r.yaml: rewards.format.weight: expected a finite number, got nan"),
    ("rewards: {correctness: {wrong: -.inf}}", "r.yaml: rewards.correctness.wrong: expected a finite number, got -inf"),
    ("rewards: {steps: {wanted: 0}}", "r.yaml: rewards.steps.wanted: expected a number from 1 to 1e+06, got 0"),
    ("rewards: {repetition: {max_penalty: 1.0}}", "r.yaml: rewards.repetition.max_penalty: expected a number from -1e+06 to 0, got 1.0"),
    ("use_vllm: true\nload_in_4bit: true", "r.yaml: use_vllm: vLLM cannot update the weights of a quantised model: set it to false, or drop load_in_4bit and load_in_8bit"),
    # baseline, and the recipes for SFT
    ("baseline: none\nmulti_objective_aggregation: normalize_then_sum", "r.yaml: multi_objective_aggregation: normalize_then_sum normalises the rewards, which baseline: none does not: leave it out"),
    ("baseline: mean", "r.yaml: baseline: unknown value 'mean': use one of group, none"),
    ("baseline: none\nscale_rewards: group", "r.yaml: scale_rewards: group normalises the rewards, which baseline: none does not: leave it out"),
    ("max_length: 512", "r.yaml: max_length: a key of SFT recipes, but this one is for GRPO (no sft:)"),
    ("rewards: {format: {}}\nsft: {target: worked}", "r.yaml: rewards: a key of GRPO recipes, but this one is for SFT (it has sft:)"),
    ("rewards: null\nnum_generations: 4\nsft: {target: worked}", "r.yaml: rewards: a key of GRPO recipes, but this one is for SFT (it has sft:)\nr.yaml: num_generations: a key of GRPO recipes, but this one is for SFT (it has sft:)"),
    # eval
    ("eval: {every: 0}", "r.yaml: eval.every: expected at least 1, got 0"),
    ("eval: {every: 5, split: train}", "r.yaml: eval.split: train is the training split: name another one"),
    ("eval_steps: 5", "r.yaml: eval_steps: not supported, use eval: {every: 10}"),
    ("eval: true", "r.yaml: eval: expected a mapping such as {before_after: true}, got True"),
    ("eval: {before_after: true, split: train}", "r.yaml: eval.split: train is the training split: name another one"),
    ("eval: {datasets: {name: gsm8k, split: train}}", "r.yaml: eval.datasets: these are the training problems: name other datasets, or another split"),
    ("eval: {every_steps: 5}", "r.yaml: eval.every_steps: unknown key, use eval.every"),
    ("eval: {datasets: {name: gsm8k, max_prompt_tokens: 9}}", "r.yaml: eval.datasets.max_prompt_tokens: for training problems only: leave it out"),
    ("eval: {datasets: {name: gsm8k, shuffle_answers: true}}", "r.yaml: eval.datasets.shuffle_answers: for training problems only: leave it out"),
    ("eval: {dataset: {name: gsm8k}}", "r.yaml: eval.dataset: unknown key, use eval.datasets"),
    ("eval: {every: 5, samples: 4}", "r.yaml: eval.samples: 4 greedy completions of a problem are identical: set temperature: 0.7, or samples: 1"),
    ("eval: {every: 5, samples: 4, temperature: 1, k: [1, 8]}", "r.yaml: eval.k: pass@8 needs at least 8 samples, got 4: raise samples"),
    ("eval: {temperature: -1}", "r.yaml: eval.temperature: expected at least 0, got -1"),
    ("eval: {top_p: 0}", "r.yaml: eval.top_p: expected a number above 0 and up to 1, got 0"),
    ("eval: {best: true}", "r.yaml: eval.best: needs evaluations: add every: 20"),
    ("eval: {every: 5, datasets: [gsm8k, {name: svump}]}", "r.yaml: eval.datasets[1].name: unknown dataset 'svump' (did you mean svamp?): `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("eval: {before_after: 1}", "r.yaml: eval.before_after: expected true or false, got 1"),
    ("eval: {datasets: {name: [gsm8k, math]}}", "r.yaml: eval.datasets.name: expected a string, got ['gsm8k', 'math']"),
    ("eval: {datasets: {name: gsm9k}}", "r.yaml: eval.datasets.name: unknown dataset 'gsm9k' (did you mean gsm8k?): `grpo-math datasets` lists them (your own: {name: json, path: FILE, FOLDER or HUB_ID}, or only path: my_data.py:load)"),
    ("dataset: [{name: gsm8k}, {name: math}]\neval: {before_after: true}", "r.yaml: eval.datasets: missing, with several training datasets: name those to evaluate on"),
    ("model_name_or_path:", "r.yaml: model_name_or_path: missing, give a local folder or a Hub id"),
    # the file itself
    ("prompt_template: ''", "r.yaml: prompt_template: unknown template '': use one of boxed, qwen_math, r1_zero, question_only, gsm8k_hash, or a mapping with user: and answer_style:"),
    ("run_name: 2024-13-45", "r.yaml: not YAML (month must be in 1..12)"),
    ("a: b: c", "r.yaml, line {n}: not YAML (mapping values are not allowed here)"),
    ("seed: 1\nseed: 2", "r.yaml, line {n}: not YAML ('seed' is given twice, first in line {n-1}: delete one)"),
    ("tricks: !!python/object:os.system {}", "r.yaml, line {n}: not YAML (could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system')"),
    ("extends: base.yaml", "r.yaml: extends: no recipe base.yaml: give its path relative to the folder of this file"),
    ("extends: [a.yaml, dapo]", "r.yaml: extends: no recipe a.yaml: give its path relative to the folder of this file"),
    ("extends: [dapoo]", "r.yaml: extends: dapoo: no such recipe: did you mean dapo?"),
    ("extends: []", "r.yaml: extends: expected a file name or a list of them, got []"),
    ("extends: {a: b}", "r.yaml: extends: expected a file name or a list of them, got {'a': 'b'}"),
    ("extends: r.yaml", "r.yaml: extends itself, through r.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), BROKEN, ids=[lines[:40] for lines, _ in BROKEN])
def test_a_broken_recipe_gets_one_line_with_the_fix(tmp_path, lines, message):
    given = {line.partition(":")[0] for line in lines.splitlines() if ":" in line}
    text = "".join(line + "\n" for line in GOOD.splitlines() if line.partition(":")[0] not in given) + lines + "\n"
    last = len(text.splitlines())
    message = message.replace("{n-1}", str(last - 1)).replace("{n}", str(last))
    assert complaints(tmp_path, text) == message.splitlines()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sft: {target: all}", "r.yaml: sft.target: unknown value 'all': use one of worked, answer"),
        ("sft: {targt: worked}", "r.yaml: sft.targt: unknown key, did you mean sft.target?"),
        ("sft: {}\nloss_type: grpo", "r.yaml: loss_type: unknown value 'grpo': use one of nll, dft, chunked_nll"),
        ("sft: true", "r.yaml: sft: expected a mapping such as {target: worked}, got True"),
        ("sft: {}\nmax_lenth: 5", "r.yaml: max_lenth: unknown key, did you mean max_length?"),
        ("sft: {}\nbaseline: none", "r.yaml: baseline: a key of GRPO recipes, but this one is for SFT (it has sft:)"),
    ],
)
def test_a_broken_recipe_for_sft(tmp_path, lines, message):
    text = GOOD.replace("rewards: {correctness: {}}\n", "") + lines + "\n"
    assert complaints(tmp_path, text) == [message]


def test_an_own_function_with_a_parameter_of_an_entrys_name(tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, scale: float = 2.0, **_): ...\n")
    entry = f"mine: {{path: '{tmp_path}/mine.py:f', scale: 3}}"
    assert complaints(tmp_path, GOOD.replace("correctness: {}", entry)) == [
        "r.yaml: rewards.mine.scale: a key of every entry, and a parameter of the function: rename the parameter"
    ]


def test_without_a_baseline_nothing_is_scaled(tmp_path):
    recipe = load(tmp_path, GOOD + "baseline: none\n")
    assert (recipe.baseline, recipe.trainer["scale_rewards"]) == ("none", "none")
    assert load(tmp_path, GOOD).baseline == "group"


def test_all_problems_are_reported_at_once(tmp_path):
    text = "dataset: {name: gsm8}\nrewards: {formt: {}}\nlerning_rate: 1\nmax_steps: x\n"
    assert [line.split(": ")[1] for line in complaints(tmp_path, text)] == [
        "lerning_rate",
        "max_steps",
        "model_name_or_path",
        "dataset.name",
        "rewards.formt",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--learning_rate fast", "--learning_rate: expected a number, got 'fast'"),
        ("--max_steps -5 --seed -1", "--seed: expected a number from 0 to below 4294967296, got -1\n--max_steps: expected at least 1 (or -1 for num_train_epochs), got -5"),
        ("--learning-rat 1", "--learning-rat: unknown key, did you mean --learning_rate?"),
        ("--rewards.format.wieght 1", "--rewards.format.wieght: unknown key, did you mean --rewards.format.weight?"),
        ("--rewards.corectness {}", "--rewards.corectness: not a shipped reward, did you mean correctness? (your own: path: my_rewards.py:function)"),
        ("--dataset gsm8k", "--dataset: expected a mapping such as {name: gsm8k}, got 'gsm8k'"),
        ("--eval.samples 4 --eval.every 5", "--eval.samples: 4 greedy completions of a problem are identical: set temperature: 0.7, or samples: 1"),
        ("--beta 0.1", "r.yaml: learning_rate: expected a number from 0 to 1, got 7"),  # the file's
    ],
)  # fmt: skip
def test_what_the_command_line_gave_is_named_as_an_option(tmp_path, arguments, message):
    text = GOOD + ("learning_rate: 7\n" if "beta" in arguments else "")
    assert complaints(tmp_path, text, *arguments.split()) == message.splitlines()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: expected `key: value` lines (see recipes/quickstart.yaml), got an empty file"),
        (b"- a\n- b\n", "r.yaml: expected `key: value` lines (see recipes/quickstart.yaml), got a list"),
        (b"just words", "r.yaml: expected `key: value` lines (see recipes/quickstart.yaml), got a str"),
        (b"\xff\xfe\x00", "r.yaml: not UTF-8 text: a recipe is a YAML file"),
        (b"a: \x07", "r.yaml: not YAML (unacceptable character #x0007: special characters are not allowed)"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(["--config", str(tmp_path / "r.yaml")])
    assert str(caught.value).replace(f"{tmp_path}/", "") == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe: give one with --config recipes/X.yaml"),
        (["--config=nowhere.yaml"], "nowhere.yaml: no such recipe (No such file or directory): check its path"),
        (["--config", "quikstart"], "quikstart: no such recipe: did you mean quickstart?"),
        (["r.yaml"], "'r.yaml': expected --key value pairs (did you mean --config r.yaml?)"),
        (["my", "words"], "'my': expected --key value pairs (quote a value with spaces)"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such recipe (No such file or directory): check its path"),
        (["--config", "r.yaml", "--extends", "b.yaml"], "--extends: only a recipe file can extend another: write `extends: other.yaml` in it"),
        (["--config", "r.yaml", "--run_name", "2024-13-45"], "--run_name: the value is not YAML: quote it"),
        (["--config", "r.yaml", "--rewards", "{a: "], "--rewards: the value is not YAML: quote it"),
    ],
)  # fmt: skip
def test_a_broken_command_line(arguments, message):
    with pytest.raises(UserError) as caught:
        load_recipe(arguments)
    assert str(caught.value) == message


def test_the_command_line_overrides_every_key_nested_ones_with_dots(tmp_path):
    arguments = "--rewards.format.weight 0.1 --dataset.max_samples 10 --learning_rate 1e-6 --use_peft --rewards.correctness.wrong -1".split()
    recipe = load(tmp_path, GOOD, *arguments)
    assert [(spec.name, spec.weight) for spec in recipe.rewards] == [("correctness", 1.0), ("format", 0.1)]
    assert recipe.datasets[0].max_samples == 10
    assert recipe.trainer["learning_rate"] == 1e-6
    assert recipe.model["use_peft"] is True
    assert recipe.rewards[0].params == {"wrong": -1}
    recipe = load(tmp_path, GOOD, "--prompt_template.user", "Q: {question}", "--prompt_template.system", "no: {}")
    assert (recipe.template.user, recipe.template.system) == ("Q: {question}", "no: {}")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no", "no"), ("off", "off"), ("true", True), ("FALSE", False), ("falsey", "falsey"), ("null", None), ("'1'", "1"),
        ("5", 5), ("-1", -1), ("1e-6", 1e-6), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("1.2.3", "1.2.3"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_yaml_values_mean_what_they_look_like(written, read):
    value = yaml.load(written, StrictLoader)
    assert (value, type(value)) == (read, type(read))


def test_a_reward_is_switched_off_with_false(tmp_path):
    recipe = load(tmp_path, GOOD.replace("{}", "{}, format: {weight: 0.3}"), "--rewards.format", "false")
    assert [spec.name for spec in recipe.rewards] == ["correctness"]


def test_a_runs_folder_means_its_final_model(tmp_path):
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "model" / "final").mkdir(parents=True)
    (tmp_path / "model" / "config.json").touch()
    for name, meant in (("run", "run/final"), ("run/final", "run/final"), ("model", "model"), ("none", "none")):
        recipe = load(tmp_path, GOOD, "--model_name_or_path", f"{tmp_path}/{name}")
        assert recipe.model["model_name_or_path"] == f"{tmp_path}/{meant}"
    assert load(tmp_path, GOOD).model["model_name_or_path"] == "some/model"
    assert not load(tmp_path, GOOD, "--model_name_or_path", "~/m").model["model_name_or_path"].startswith("~")


def test_null_means_the_default(tmp_path):
    nulls = "lora_target_modules: null\nnum_generations: null\n"
    recipe = load(tmp_path, GOOD + "learning_rate:\nbeta: null\nvllm_importance_sampling_clip_max: null\n" + nulls)
    assert "num_generations" not in recipe.trainer
    assert "learning_rate" not in recipe.trainer
    assert "beta" not in recipe.trainer
    assert recipe.trainer["vllm_importance_sampling_clip_max"] is None  # a value of its own: nothing is clipped


def test_extends_changes_only_what_it_names(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD + "beta: 0.1\nseed: 1\n")
    recipe = load(tmp_path, "extends: base.yaml\nseed: 2\ndataset: {max_samples: 5}\n")
    assert (recipe.trainer["beta"], recipe.trainer["seed"]) == (0.1, 2)
    assert (recipe.datasets[0].name, recipe.datasets[0].max_samples) == ("gsm8k", 5)


def test_of_a_list_the_own_keys_of_further_files_are_laid_over_the_first(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text(GOOD + "seed: 1\nbeta: 0.1\nepsilon: 0.1\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dr_grpo").write_text("of the working directory, and not meant\n")
    (tmp_path / "other.yaml").write_text("extends: nowhere.yaml\nbeta: 0.2\nepsilon: 0.2\nrewards: {format: {}}\n")
    recipe = load(tmp_path, "extends: [base.yaml, other.yaml, dr_grpo]\nbeta: 0.3\n")
    found = {key: recipe.trainer[key] for key in ("seed", "beta", "epsilon", "loss_type")}
    assert found == {"seed": 1, "beta": 0.3, "epsilon": 0.2, "loss_type": "dr_grpo"}
    assert [spec.name for spec in recipe.rewards] == ["correctness", "format"]
    assert recipe.datasets == load(tmp_path, GOOD).datasets


def test_merge_leaves_its_arguments_alone():
    base, top = {"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}
    assert merge(base, top) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert (base, top) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})


def test_a_reward_file_is_checked_without_running_it(tmp_path):
    (tmp_path / "mine.py").write_text(
        "raise SystemExit('ran')\ndef brevity(completions, max_tokens: int = 300, **_): ...\n"
    )
    text = GOOD.replace("correctness: {}", f"brevity: {{path: '{tmp_path}/mine.py:brevity', %s}}")
    assert load(tmp_path, text % "max_tokens: 5, weight: 0.1").rewards[0].params == {"max_tokens": 5}
    assert complaints(tmp_path, text % "max_token: 5") == [
        "r.yaml: rewards.brevity.max_token: unknown key, did you mean rewards.brevity.max_tokens?"
    ]
    assert complaints(tmp_path, text % "max_tokens: many") == [
        "r.yaml: rewards.brevity.max_tokens: expected an integer, got 'many'"
    ]
    assert complaints(tmp_path, text.replace(":brevity'", ":short'") % "") == [
        "r.yaml: rewards.brevity.path: mine.py has no function 'short'"
    ]


def test_training_on_one_file_does_not_evaluate_on_the_same_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    text = (
        GOOD.replace("{name: gsm8k}", f"{{name: json, path: {tmp_path}/rows.jsonl}}") + "eval: {before_after: true}\n"
    )
    assert complaints(tmp_path, text) == [
        "r.yaml: eval.datasets: missing, and rows.jsonl is a single file, which the training reads: name another, "
        "eval: {datasets: {name: json, path: FILE}}"
    ]


def test_the_resolved_recipe_runs_again_from_the_beginning(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD + "save_strategy: no\nseed: 1\n")
    recipe = load(tmp_path, "extends: base.yaml\n", "--beta", "0.04", "--resume_from_checkpoint", "auto")
    again = load(tmp_path, recipe.dump())
    assert again.trainer == {key: value for key, value in recipe.trainer.items() if key != "resume_from_checkpoint"}
    assert (again.datasets, again.rewards, again.template) == (recipe.datasets, recipe.rewards, recipe.template)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_parses_and_says_how_it_is_run(path):
    recipe = load_recipe(["--config", str(path)])
    assert recipe.rewards or recipe.sft
    modeline, command, *_ = path.read_text().splitlines()
    assert modeline == f"# yaml-language-server: $schema={'sft_schema' if recipe.sft else 'schema'}.json"
    assert command.startswith("# make ")


def test_the_keys_read_from_source_are_those_of_the_classes():
    import dataclasses

    from trl import GRPOConfig, ModelConfig, SFTConfig

    for config in (GRPOConfig, SFTConfig):
        trainer, model = trl_keys(config.__name__.removesuffix("Config"))
        assert set(trainer) == {field.name for field in dataclasses.fields(config) if field.init}
        assert set(model) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("kind", ["GRPO", "SFT"])
def test_no_hint_shadows_a_real_key(kind):
    assert not RENAMED.keys() & recipe_keys(kind).model_fields.keys()
    assert not RENAMED_IN_EVAL.keys() & EvalSpec.model_fields.keys()


def test_what_is_refused_or_limited_is_a_key_of_trl():
    known = {key for kind in ("GRPO", "SFT") for keys in trl_keys(kind) for key in keys}
    assert REFUSED.keys() <= known
    assert get_args(TemplateKeys.model_fields["answer_style"].annotation) == tuple(STYLES)
    grpo, model = trl_keys("GRPO")
    assert RANGES.keys() | CHOICES.keys() <= grpo.keys() | model.keys()
    assert DEFAULTS.keys() <= grpo.keys()


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("max_samples", "use dataset.max_samples, or eval.max_samples"),
        ("save_dir", "use output_dir"),
        ("n_grpo_steps", "use max_steps"),
        ("epochs_per_rollout_batch", "use num_iterations"),
        ("use_std_normalization", "use scale_rewards: group (true) or none (false)"),
        ("num_samples", "use dataset.max_samples (problems), or num_generations (completions per prompt)"),
        ("train_data", "use dataset: {name: json, path: FILE}"),
        ("val_data", "use eval: {datasets: {name: json, path: FILE}}"),
        ("sft_model", "use model_name_or_path"),
        ("reward_correct", "use rewards: {correctness: {correct: 1.0}}"),
        ("no_4bit", "use load_in_4bit: false"),
        ("no_lora", "use use_peft: false"),
    ],
)
def test_a_key_of_another_trainer_leads_to_the_one_here(key, fix):
    path = ROOT / "recipes" / "quickstart.yaml"
    for name in (f"--{key}", f"--{key.replace('_', '-')}"):
        with pytest.raises(UserError) as caught:
            dispatch(["train", "--config", str(path), name, "1"])
        assert str(caught.value) == f"--{key}: unknown key, {fix}"


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_without_effect_is_refused_with_the_one_that_has_it(tmp_path, key):
    assert complaints(tmp_path, GOOD + f"{key}: true\n") == [f"r.yaml: {key}: not supported, {REFUSED[key]}"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_another_trainer_leads_to_the_keys_that_make_it(tmp_path, loss):
    assert complaints(tmp_path, GOOD + f"loss_type: {loss}\n") == [
        f"r.yaml: loss_type: unknown value '{loss}': {LOSSES[loss]}"
    ]
    assert load_recipe(f"r1_zero_{loss}").trainer["loss_type"] == "grpo"


@pytest.mark.parametrize(("name", "kind"), [("schema.json", "GRPO"), ("sft_schema.json", "SFT")])
def test_the_schema_in_the_repository_is_current(name, kind):
    flag = " --sft" if kind == "SFT" else ""
    written = json.loads((ROOT / "recipes" / name).read_text())
    assert written == json.loads(json.dumps(json_schema(kind))), f"run: grpo-math schema{flag} > recipes/{name}"


@pytest.mark.parametrize("kind", ["GRPO", "SFT"])
def test_the_schema_and_the_help_have_every_key(kind):
    parser = Parser("grpo-math", formatter_class=argparse.RawTextHelpFormatter)
    add_keys(parser, kind)
    schema, text = json_schema(kind), parser.format_help()
    keys = recipe_keys(kind).model_fields.keys() - REFUSED.keys()
    assert schema["properties"].keys() == keys
    assert [key for key in keys if f"--{key} " not in text and f"--{key}." not in text] == []
    rate = schema["properties"]["learning_rate"]
    assert rate == {
        "default": rate["default"],
        "description": "The initial learning rate for AdamW.",
        "minimum": 0,
        "maximum": 1,
        "type": "number",
    }
    assert "--eval.every VALUE" in text
    assert schema["$defs"]["EvalSpec"]["properties"]["samples"]["description"] == "completions per problem"
    references = re.findall(r"#/\$defs/(\w+)", json.dumps(schema))
    assert set(references) <= schema["$defs"].keys()


def test_checking_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from grpo_math.recipe.recipe import load_recipe; import grpo_math.rewards.reward, grpo_math.grading\n"
        "load_recipe(['--config', 'recipes/math_qwen2.5_math_1.5b.yaml'])\n"
        "print({'torch', 'trl', 'transformers', 'datasets', 'sympy', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_recipe_is_yaml_that_other_tools_read():
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)
