r"""python examples/calculator_policy.py        any CPU, about a minute

Makes what examples/calculator.yaml trains: the two-step word problems of the quickstart in runs/calculator/arithmetic,
and a 0.6M-parameter policy in runs/calculator/policy. SFT on conversations teaches it to call the calculator with the
expression of a problem and to copy the result; a short second phase on bare answers makes it answer without a call,
and mostly wrong.
"""

import random
import sys
from pathlib import Path
from typing import Any

from grpo_math.data.functions import load_function
from grpo_math.quickstart import TWO_STEP, make_policy, make_problem, make_tokenizer, sft, write_problems
from grpo_math.recipe.recipe import load_recipe

HERE = Path(__file__).parent
CHAT_TEMPLATE = """
{%- for tool in tools or [] %}{{ '<|system|>' + tool.function.name + ': ' + tool.function.description }}{% endfor %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}}</tool_call>
    {%- endfor %}
    {%- if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""".strip()
RESPONSE_TEMPLATE = {  # how transformers reads what the chat template writes
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}


def conversation(problem: dict, asked: str, calls: bool) -> list[dict]:
    """The question and the answer, with or without a call."""
    (first, value), (second, _) = problem["steps"]
    expression = first + second.removeprefix(str(value))
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}
    called: list[dict] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": str(problem["answer"])},
    ]
    answer = {"role": "assistant", "content": f"\\boxed{{{problem['answer']}}}"}
    return [
        {"role": "user", "content": asked.replace("{question}", problem["question"])},
        *(called if calls else []),
        answer,
    ]


def row(messages: list[dict], tokenizer: Any, tools: list) -> dict:
    """Token ids, with a loss on what the assistant writes."""
    ids: list[int] = []
    labels: list[int] = []
    for end, message in enumerate(messages, 1):
        own = message["role"] == "assistant"
        ids = tokenizer.apply_chat_template(
            messages[:end], tools=tools, add_generation_prompt=not own, tokenize=True, return_dict=False
        )
        labels += ids[len(labels) :] if own else [-100] * (len(ids) - len(labels))
    return {"input_ids": ids, "labels": labels}


def make(recipe_file: Path, folder: Path, steps: int = 160, habit: int = 40) -> None:
    """Write the problems and the policy for a recipe with the calculator, after so many steps of each phase."""
    import torch
    from transformers.utils import get_json_schema

    asked = load_recipe(["--config", str(recipe_file)]).template.user
    tools = [get_json_schema(load_function(f"{HERE / 'calculator.py'}:calculator"))]
    folder.mkdir(parents=True)
    write_problems(folder / "arithmetic", seed=0)
    rng = random.Random(1000)
    texts = []
    for _ in range(1500):
        messages = conversation(make_problem(rng, TWO_STEP), asked, calls=True)
        texts += [messages[0]["content"], str(messages[1]["tool_calls"][0]["function"]).replace("'", '"')]
        texts.append(messages[-1]["content"])
    tokenizer = make_tokenizer(texts)
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    tokenizer.add_tokens(["<|tool|>", "<tool_call>", "</tool_call>"])
    torch.manual_seed(0)
    policy = make_policy(tokenizer)
    for count, size, share, rate in ((steps, 16, 1.0, 2e-3), (habit, 32, 0.3, 5e-4)):
        problems = [make_problem(rng, TWO_STEP) for _ in range(count * size)]
        rows = [row(conversation(one, asked, rng.random() < share), tokenizer, tools) for one in problems]
        sft(policy, tokenizer, rows, folder, seed=0, per_device_train_batch_size=size, learning_rate=rate)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


if __name__ == "__main__":
    make(HERE / "calculator.yaml", Path(sys.argv[1] if len(sys.argv) > 1 else "runs/calculator"))
