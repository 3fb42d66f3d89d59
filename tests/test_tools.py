"""Tools and environments: what is refused, how a conversation goes on, what is graded, kept and shown."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, ROWS

from grpo_math.data import Problem, PromptTemplate, completion_text, prompt_lengths, to_rows, unanswered
from grpo_math.errors import UserError
from grpo_math.generation import Completion, Sampling, converse
from grpo_math.models import Tools, load_tokenizer, load_tools
from grpo_math.recipe.recipe import load_recipe, resolve
from grpo_math.report.data import messages_text, read_completions
from grpo_math.runs.folder import read_rows, read_table
from grpo_math.trainer.config import check_turns

sys.path.append(str(ROOT / "examples"))
from calculator import calculator
from calculator_policy import CHAT_TEMPLATE, RESPONSE_TEMPLATE

CALCULATOR = f"{ROOT / 'examples' / 'calculator.py'}:calculator"
CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "1+2"}}}
CALLING = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "calculator", "content": "3"}
ANSWER = {"role": "assistant", "content": "\\boxed{3}"}
OWN = '''
class Bag:
    """Counts apples."""
    def reset(self, solution, **row):
        self.count, self.solution = 0, solution
        return " The bag is empty."
    def add(self, apples: int) -> int:
        """Puts apples into the bag.

        Args:
            apples: How many.
        """
        self.count += apples
        return self.count
class Scored(Bag):
    def get_reward(self): return 1.0
class Strict(Bag):
    def reset(self, question): ...
class Idle:
    def reset(self, **row): ...
class Costly:
    def __init__(self): raise RuntimeError("no disk")
def bare(x): return x
def untold(x: int):
    """Does."""
def calculator(expression: str):
    """Another.

    Args:
        expression: One.
    """
constant = 3
def counted(environments, solution, **_):
    return [float(str(bag.count) == gold) for bag, gold in zip(environments, solution)]
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def tool_policy(tmp_path_factory):
    """A random policy whose tokenizer writes calls as in examples/calculator_policy.py."""
    from conftest import save_policy

    from grpo_math.quickstart import make_tokenizer

    texts = [row["question"] for row in ROWS] + [json.dumps(CALL["function"]), "{bag: Puts apples into the bag.}"] * 20
    tokenizer = make_tokenizer(texts)
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    tokenizer.add_tokens(["<|tool|>", "<tool_call>", "</tool_call>"])
    return save_policy(tokenizer, tmp_path_factory.mktemp("tool_policy"), hidden_size=32)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", "7"),
        (" (4-6)/4 ", "-0.5"),
        ("-2*-3", "6"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333"),
        ("9" * 50, "9" * 50),
    ],
)
def test_the_calculator_computes(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "2**9",
        "1//2",
        "abs(1)",
        "__import__('os')",
        "x",
        "'a'*9",
        "True",
        "1,2",
        "",
        "1 +",
        "[1]",
        "(" * 100,
        "1" * 201,
        "1/0",
        "1j",
    ],
)
def test_the_calculator_refuses_everything_else(expression):
    with pytest.raises((ValueError, ZeroDivisionError)):
        calculator(expression)


@pytest.mark.parametrize(
    ("tools", "environment", "says"),
    [
        (
            ["bare"],
            None,
            r"tools: .*:bare: Cannot generate JSON schema .*no docstring!: give it type hints, and a Google",
        ),
        (["untold"], None, r"tools: .*:untold: .*no description for the argument 'x': give it"),
        (["Bag"], None, r"tools: .*:Bag is not a function: name one, or a class as environment"),
        (["missing"], None, r"own.py has no function 'missing'"),
        (["calculator", CALCULATOR], None, r"tools: several are called calculator: rename one"),
        (
            [],
            "Scored",
            r"environment: TRL would add .*Scored.get_reward as a reward of weight 1: rename it",
        ),
        ([], "Strict", r"environment: .*Strict needs a method reset\(self, \*\*row\)"),
        ([], "Idle", r"environment: .*Idle has no public method except reset"),
        ([], "Costly", r"environment: .*Costly\(\) failed \(RuntimeError: no disk, own.py:\d+\)"),
    ],
)
def test_tools_that_trl_could_not_use_are_named_before_anything_is_loaded(own, tools, environment, says):
    tools = [name if ":" in name else f"{own}:{name}" for name in tools]
    with pytest.raises(UserError, match=says) as mistake:
        load_tools(tools, environment and f"{own}:{environment}")
    assert "\n" not in str(mistake.value)


def test_a_recipe_with_tools_is_checked(write_recipe, own):
    def problems(**changes):
        return resolve(["--config", str(write_recipe(**changes))])[1]

    tools = {"tools": [CALCULATOR]}
    assert problems(**tools, max_tool_calling_iterations=2) == problems(environment=f"{own}:Bag") == []
    for changes, says in (
        ({"max_tool_calling_iterations": 2}, "max_tool_calling_iterations: no effect without tools"),
        ({**tools, "max_tool_calling_iterations": 0}, "max_tool_calling_iterations: expected at least 1, got 0"),
        ({"tools": CALCULATOR}, "tools: expected a list of strings, got"),
        ({"tools": ["no.py:f"]}, "tools[0]: no file no.py"),
        ({"environment": f"{own}:Bags"}, f"environment: {own} has no function 'Bags'"),
        ({**tools, "prompt_template": "r1_zero"}, "prompt_template: tools need a conversation, but chat: false makes the prompt plain text"),
        ({**tools, "prompt_template": {"prefill": "<think>"}}, "prompt_template: tools need a conversation, but prefill makes the prompt plain text"),
        ({**tools, "rewards": {"judge": {"reward_model": "a/b"}}}, "rewards.judge.reward_model: it scores whole"),
    ):  # fmt: skip
        (found,) = problems(**changes)
        assert found.startswith(says)
    sft = resolve(
        ["--config", str(write_recipe(rewards=None, sft={}, num_generations=None, max_completion_length=None, **tools))]
    )[1]
    assert sft == ["tools: a key of GRPO recipes, but this one is for SFT (it has sft:)"]


def test_the_chat_template_has_to_show_tools(tool_policy, tmp_path, policy_folder):
    from trl import chat_template_utils as known

    from grpo_math.models.tools import continuing_template

    tools, template = load_tools([CALCULATOR], None), PromptTemplate()
    with pytest.raises(
        UserError, match=r"^tools: the chat template of .* does not show the tool calculator: use a model"
    ):
        load_tokenizer({"model_name_or_path": str(policy_folder)}, template, tools)
    tokenizer = load_tokenizer({"model_name_or_path": str(tool_policy)}, template, tools)
    plain = load_tokenizer({"model_name_or_path": str(tool_policy)}, template)
    problem, schema = Problem("1+1?", "2"), tokenizer("<|system|>calculator: Computes an arithmetic expression.")
    more = len(schema["input_ids"])
    assert prompt_lengths([problem], template, tokenizer) == [prompt_lengths([problem], template, plain)[0] + more]
    for own_template, patched in (
        (known.qwen2_5_chat_template, False), (known.qwen3_chat_template, True), (known.llama3_2_chat_template, False),
    ):  # fmt: skip
        tokenizer.chat_template, tokenizer.response_template = own_template, None
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text((tool_policy / "config.json").read_text())
        found = load_tokenizer({"model_name_or_path": str(tmp_path)}, template, tools)
        assert "calculator" in found.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
        assert (continuing_template(found) is not None) == patched
        assert found.response_template
    odd = own_template + "{# changed #}"
    tokenizer.chat_template = odd
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"^tools: TRL cannot read the calls of .*Unrecognized chat template.*response_template with"
    ):
        load_tokenizer({"model_name_or_path": str(tmp_path)}, template, tools)


def test_a_call_that_cannot_be_read_is_text(tool_policy):
    from trl.chat_template_utils import parse_response

    tokenizer = load_tokenizer(
        {"model_name_or_path": str(tool_policy)}, PromptTemplate(), load_tools([CALCULATOR], None)
    )
    for written in ("[" * 3000, "[1]", '{"name": 1}', '{"name"', "3"):
        text = f"<tool_call>{written}</tool_call>"
        found = parse_response(tokenizer, tokenizer(text)["input_ids"], prefix=tokenizer("<|assistant|>")["input_ids"])
        assert found == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("messages", "text", "ends_without"),
    [
        ([ANSWER], "\\boxed{3}", False),
        ([CALLING, RESULT, ANSWER], "\\boxed{3}", False),
        ([CALLING], "", True),  # no turn left for the result
        ([CALLING, RESULT], "", True),  # no token left for the answer
        ([CALLING, RESULT, CALLING], "", True),
        ([ANSWER | {"tool_calls": []}], "\\boxed{3}", False),
        ([CALLING, RESULT, ANSWER | {"reasoning_content": "Hm."}], "<think>Hm.</think>\n\\boxed{3}", False),
        ([ANSWER | {"content": "", "thinking": "\\boxed{3}"}], "<think>\\boxed{3}</think>\n", False),  # cut off
        ("\\boxed{3}", "\\boxed{3}", False),
    ],
)
def test_the_final_answer_is_graded(messages, text, ends_without):
    assert (completion_text(messages), unanswered(messages)) == (text, ends_without)


def test_a_conversation_is_shown_whole():
    thought = {"role": "assistant", "reasoning_content": "Hm.", "content": "", "tool_calls": json.dumps([CALL, CALL])}
    call = '[call] calculator({"expression": "1+2"})'
    assert (
        messages_text([CALLING, RESULT, ANSWER])
        == f"assistant: Let me see.\n{call}\n\ntool: 3\n\nassistant: \\boxed{{3}}"
    )
    assert messages_text([thought]) == f"[reasoning_content] Hm.\n{call}\n{call}"
    assert messages_text([ANSWER]) == "\\boxed{3}"


def asked_for(text: str) -> str:
    """What the scripted policy writes next: the sum, a call that fails, or an answer from the last result."""
    if "<|tool|>" in text:
        return f"\\boxed{{{re.search(r'(.*)<', text.rpartition('<|tool|>')[2])[1][:40]}}}<|end|>"
    question = text.rpartition("<|user|>")[2]
    first, second = re.findall(r"\d+", question)[:2]
    if "The bag" in question:
        return f'<tool_call>{{"name": "add", "arguments": {{"apples": {int(first) + int(second)}}}}}</tool_call><|end|>'
    expression = "1/0" if first == "1" else f"{first}+{second}"
    return f'<tool_call>{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}</tool_call><|end|>'


class Scripted:
    """An engine that writes what is `asked_for`."""

    def __init__(self, tokenizer, window=256):
        self.tokenizer, self.window, self.asked = tokenizer, window, []

    def generate(self, prompts, seeds, sampling, done=frozenset()):
        assert len(set(seeds)) == len(seeds)
        self.asked.append(len(prompts))
        for index, prompt in enumerate(prompts):
            ids = self.tokenizer(asked_for(self.tokenizer.decode(prompt)))["input_ids"][: sampling.max_new_tokens]
            yield {index: [Completion("", len(ids), False, tuple(ids))]}


def conversations(tokenizer, tools, most=100, samples=1, window=256, done=frozenset()):
    problems = [Problem(f"{a} and {b}?", str(a + b)) for a, b in ((2, 3), (1, 4), (3, 3))]
    rows = to_rows(problems, PromptTemplate(), tokenizer)
    sampling = Sampling(most, samples, 1.0, ends=frozenset({tokenizer.eos_token_id}))
    engine = Scripted(tokenizer, window)
    found = {}
    for some in converse(engine, rows, sampling, 0, tokenizer, tools, done):
        found |= some
    return found, engine


def test_an_evaluation_holds_the_conversation(tool_policy):
    tools = load_tools([CALCULATOR], None, 2)
    tokenizer = load_tokenizer({"model_name_or_path": str(tool_policy)}, PromptTemplate(), tools)
    found, engine = conversations(tokenizer, tools, samples=2, done={2})
    assert engine.asked == [6, 6]  # all in one portion, two turns
    assert found.keys() == {0, 1}
    right, failed = found[0][0], found[1][0]
    assert (right.text, right.truncated) == ("\\boxed{5}", False)
    assert found[0][1] == right
    assert [message["role"] for message in json.loads(right.conversation)] == ["assistant", "tool", "assistant"]
    assert json.loads(failed.conversation)[1]["content"].startswith("{'error': ")  # TRL's, for the model to read
    own = [tokenizer(asked_for(text))["input_ids"] for text in ("<|user|>2 and 3?", "<|tool|>5<|assistant|>")]
    assert right.length == sum(map(len, own)) < len(right.ids)  # without the result
    assert tokenizer.decode(right.ids).endswith("<|end|><|tool|>5<|assistant|>\\boxed{5}<|end|>")


@pytest.mark.parametrize(
    ("limits", "turns", "roles"),
    [
        ({"most": 0}, 1, ["assistant"]),  # the call alone fills it: TRL takes back the result
        ({"most": 3}, 1, ["assistant", "tool"]),  # the result fits, and not a token more
        ({"most": 4}, 2, ["assistant", "tool", "assistant"]),  # cut after a token of the answer
        ({"window": 0}, 1, ["assistant"]),
    ],
)
def test_a_conversation_that_is_cut_has_no_answer(tool_policy, limits, turns, roles):
    tools = load_tools([CALCULATOR], None)
    tokenizer = load_tokenizer({"model_name_or_path": str(tool_policy)}, PromptTemplate(), tools)
    call = len(tokenizer(asked_for("<|user|>2 and 3?"))["input_ids"])
    prompt = prompt_lengths([Problem("2 and 3?", "5")], PromptTemplate(), tokenizer)[0]
    given = {"most": call + limits["most"]} if "most" in limits else {"window": prompt + call}
    found, _ = conversations(tokenizer, tools, **given)
    first = found[0][0]
    assert first.truncated
    assert [message["role"] for message in json.loads(first.conversation)] == roles
    assert "boxed" not in first.text or turns == 2


def test_calls_may_be_limited_and_async(tool_policy):
    async def calculator(expression: str) -> str:
        """Fails.

        Args:
            expression: Any.
        """
        return "7"

    tools = Tools([calculator], max_calls=1, schemas=load_tools([CALCULATOR], None).schemas)
    tokenizer = load_tokenizer({"model_name_or_path": str(tool_policy)}, PromptTemplate(), tools)
    found, _ = conversations(tokenizer, tools)
    assert [found[place][0].text for place in range(3)] == ["\\boxed{7}"] * 3


def test_each_conversation_has_its_environment(tool_policy, own):
    tools = load_tools([], f"{own}:Bag")
    tokenizer = load_tokenizer({"model_name_or_path": str(tool_policy)}, PromptTemplate(), tools)
    for _ in range(2):  # the environments are made once, and reset
        found, _ = conversations(tokenizer, tools, samples=2)
        assert [[one.text for one in found[place]] for place in range(3)] == [
            [f"\\boxed{{{n}}}"] * 2 for n in (5, 5, 6)
        ]
    assert len(tools.pool) == 6
    assert tools.pool[0].solution == "5"


def test_a_training_with_tools(write_recipe, tool_policy, own, monkeypatch, tmp_path):
    """Training, its evaluations and `evaluate` call the tools; all show the conversation and grade its end."""
    from trl import GRPOTrainer

    from grpo_math.evaluation.evaluate import evaluate, trained_with_tools
    from grpo_math.generation import TransformersEngine
    from grpo_math.train import train

    def written(tokenizer, prompts):
        return [tokenizer(asked_for(tokenizer.decode(ids)))["input_ids"] for ids in prompts]

    def turn(self, prompt_ids, *_, **__):
        return written(self._tokenizer, prompt_ids), None

    def complete(self, prompts, seed, sampling):
        return [[Completion("", len(ids), False, tuple(ids))] for ids in written(self.tokenizer, prompts)]

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", turn)
    monkeypatch.setattr(TransformersEngine, "complete", complete)
    path = write_recipe(
        model_name_or_path=str(tool_policy), tools=[CALCULATOR], max_completion_length=100, max_steps=1,
        per_device_train_batch_size=16, eval={"before_after": True}, alarms={"steps": 1},
        rewards={"correctness": {}, "brevity": {"weight": 0.1}},
    )  # fmt: skip
    results = train(load_recipe(["--config", str(path)]))
    assert results["after"]["accuracy"] == 1.0  # no failing call among the held-out problems
    metrics = read_rows(tmp_path / "run" / "metrics.jsonl")[1]
    assert metrics["tools/call_frequency"] == 1.0
    assert 0 < metrics["time/tools"] < metrics["step_time"]
    kept = read_table(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert metrics["accuracy"] == sum(row["correct"] for row in kept) / 16
    assert metrics["tools/failure_frequency"] == sum(not row["correct"] for row in kept) / 16
    assert {row["truncated"] for row in kept} == {False}
    assert metrics["completions/mean_length"] == sum(row["length"] for row in kept) / 16
    assert json.loads(kept[0]["completion"][0]["tool_calls"])[0]["function"]["name"] == "calculator"
    shown = read_completions(tmp_path / "run" / "completions" / "eval-000001.parquet")[0]["completion"]
    assert re.fullmatch(
        r'assistant: \[call\] calculator\(\{"expression": "\d\+\d"\}\)\n\ntool: \d+\n\nassistant: .*', shown
    )
    found = evaluate(str(path), out=str(tmp_path / "out"), model=str(tmp_path / "run" / "final"))
    assert found["metrics"]["accuracy"] == 1.0
    assert found["settings"]["tools"]["named"] == [CALCULATOR]
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert "with tools (calculator.py:calculator): the code below" in card
    assert trained_with_tools(str(tmp_path / "run" / "final"))
    assert not trained_with_tools(str(tool_policy))

    path = write_recipe(
        model_name_or_path=str(tool_policy), environment=f"{own}:Bag", max_completion_length=100, max_steps=1,
        output_dir=str(tmp_path / "bag"), rewards={"counted": {"path": f"{own}:counted"}}, eval={"before_after": True},
    )  # fmt: skip
    results = train(load_recipe(["--config", str(path)]))
    assert results["after"]["accuracy"] == 1.0
    assert "rewards.counted needs environments" in (tmp_path / "bag" / "training.log").read_text()
    assert read_rows(tmp_path / "bag" / "metrics.jsonl")[1]["rewards/counted/mean"] == 1.0


@pytest.mark.parametrize(
    ("keys", "environment", "what"),
    [
        ({"use_vllm": True, "vllm_mode": "server"}, {}, "vllm_mode: server"),
        ({"use_vllm": True, "vllm_tensor_parallel_size": 2}, {}, "vllm_tensor_parallel_size: 2"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, r"a sharded model \(FSDP, ZeRO-3\) without vLLM"),
        ({}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, r"a sharded model \(FSDP, ZeRO-3\) without vLLM"),
        ({"use_vllm": True}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, None),
        ({}, {}, None),
    ],
)
def test_processes_that_generate_together_hold_no_conversations(keys, environment, what, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {"use_vllm": False, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 1} | keys
    check_turns(SimpleNamespace(distributed_state=SimpleNamespace(num_processes=1), **given))
    several = SimpleNamespace(distributed_state=SimpleNamespace(num_processes=2), **given)
    if what is None:
        check_turns(several)
        return
    with pytest.raises(UserError, match=f"^tools: {what} generates on all processes together"):
        check_turns(several)


@pytest.mark.slow
def test_the_example_learns_to_call_the_calculator(tmp_path):
    """SFT that lets it answer without a call, then a few steps of GRPO; measured in full: 0.05 -> 1.00."""
    from calculator_policy import make

    from grpo_math.train import train

    recipe = ROOT / "examples" / "calculator.yaml"
    make(recipe, tmp_path / "made", steps=110, habit=30)
    results = train(
        load_recipe(
            ["--config", str(recipe)], tools=[CALCULATOR], model_name_or_path=tmp_path / "made" / "policy",
            dataset={"path": str(tmp_path / "made" / "arithmetic")}, output_dir=tmp_path / "run", max_steps=3,
        )
    )  # fmt: skip
    assert results["before"]["accuracy"] < 0.3
    assert results["after"]["accuracy"] > 0.8
    calls = [row["tools/call_frequency"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert calls[0] < 0.6 < calls[-1]
