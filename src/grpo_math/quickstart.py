"""The whole job on a plain CPU in one to two minutes, without downloads: `grpo-math quickstart`.

The policy is a 0.6M-parameter Llama with its own tokenizer, both made here. Two-step word problems in GSM8K's format
are written to DIR/arithmetic. SFT on worked solutions teaches the policy to reason; a short second phase of SFT on bare
answers makes it answer without working, and mostly wrong. GRPO then learns from the correctness reward alone that
writing out the working pays: `grpo_math.train` on recipes/quickstart.yaml, the code that trains any other model.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads slow so small a model down
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import logging
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.data import PromptTemplate
from grpo_math.data.adapters import gsm8k
from grpo_math.data.pairs import Pairs
from grpo_math.errors import UserError, one_line
from grpo_math.recipe.file import shipped
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.runs.folder import lines_of, next_step, write_json
from grpo_math.runs.logs import log_to, run_logging
from grpo_math.runs.progress import Bar, stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

NAMES = ["Ava", "Bo", "Cleo", "Dan", "Eli", "Fay", "Gus", "Hana", "Ivo", "June"]
THINGS = ["apples", "books", "coins", "pens", "cards", "eggs", "shells", "stamps", "marbles", "keys"]
ONE_STEP = [
    ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?", "+"),
    ("A shelf holds {a} {things}. {name} puts {b} {things} on it. How many {things} does it hold now?", "+"),
    ("{name} has {a} {things} and loses {b}. How many {things} are left?", "-"),
    ("There are {a} {things} in a bag. {name} takes out {b}. How many {things} are left?", "-"),
    ("{name} fills {a} boxes with {b} {things} each. How many {things} is that?", "*"),
]
TWO_STEP = [
    ("{name} has {a} {things} and gets {b} more. Then {name} loses {c}. How many {things} are left?", "+-"),
    ("{name} fills {a} boxes with {b} {things} each. Then {name} loses {c}. How many {things} are left?", "*-"),
    ("{name} fills {a} boxes with {b} {things} each and gets {c} more. How many {things} is that?", "*+"),
    ("{name} has {a} {things} and loses {b}. Then {name} gets {c} more. How many {things} is that?", "-+"),
    ("There are {a} {things} in a bag. {name} takes out {b} and then {c}. How many {things} are left?", "--"),
    ("{name} counts {a} {things}, then {b} and then {c}. How many {things} is that?", "++"),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def calculate(left: int, sign: str, right: int) -> int:
    """The sum, difference or product."""
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def make_problem(rng: random.Random, templates: list[tuple[str, str]]) -> dict:
    """One word problem with numbers up to 9, products up to 5x5 and no negative result: question, steps, answer."""
    text, signs = rng.choice(templates)
    while True:
        low, high = (2, 5) if signs[0] == "*" else (1, 9)
        numbers = [rng.randint(low, high), rng.randint(low, high), rng.randint(1, 9)]
        value, steps = numbers[0], []
        for sign, number in zip(signs, numbers[1:], strict=False):
            steps.append((f"{value}{sign}{number}", result := calculate(value, sign, number)))
            value = result
        if all(result >= 0 for _, result in steps):
            break
    a, b, c = numbers
    question = text.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b, c=c)
    return {"question": question, "steps": steps, "answer": value}


def gsm8k_row(problem: dict) -> dict:
    """The problem as a row of GSM8K: calculator marks in the working, the answer after ####."""
    lines = [f"{left}=<<{left}={right}>>{right}" for left, right in problem["steps"]]
    return {"question": problem["question"], "answer": "\n".join([*lines, f"#### {problem['answer']}"])}


def write_problems(folder: Path, seed: int, train: int = 512, test: int = 200) -> None:
    """Write train.jsonl and test.jsonl; the steps of a test problem occur in no training problem."""
    rng = random.Random(seed)
    training = [make_problem(rng, TWO_STEP) for _ in range(train)]
    steps = [problem["steps"] for problem in training]
    held_out: list[dict] = []
    while len(held_out) < test:
        problem = make_problem(rng, TWO_STEP)
        if problem["steps"] not in steps:
            held_out.append(problem)
    folder.mkdir(parents=True, exist_ok=True)
    for split, problems in (("train", training), ("test", held_out)):
        (folder / f"{split}.jsonl").write_text(lines_of(map(gsm8k_row, problems)))


def make_tokenizer(texts: list[str], vocab_size: int = 512) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer trained on `texts`, one token per digit, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}|\\\p{L}+\{| ?[^\s\p{L}\p{N}\\]+|\s"), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
    )


def make_policy(tokenizer: "PreTrainedTokenizerFast", hidden_size: int = 128) -> "PreTrainedModel":
    """A two-layer Llama, 0.58M parameters at the default width, from torch's global seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    policy = LlamaForCausalLM(config)
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.07)
    return policy


def arithmetic_facts() -> list[tuple[str, str]]:
    """Every sum, difference and product a two-step problem can need, as ("3+4=", "7")."""
    facts = [(left, sign, right) for left in range(28) for sign in "+-" for right in range(1, 10)]
    facts += 3 * [(left, "*", right) for left in range(2, 6) for right in range(2, 6)]
    results = [("{}{}{}=".format(*fact), calculate(*fact)) for fact in facts]
    return [(left, str(result)) for left, result in results if result >= 0]


class WarmStart:
    """Rows for SFT: prompts with an answer, and drill rows of six facts; the loss is on answers and results only."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", template: PromptTemplate, seed: int):
        self.tokenizer, self.template, self.rng = tokenizer, template, random.Random(seed)
        self.facts = [(self.encode(left), self.encode(result + "\n")) for left, result in arithmetic_facts()]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def rows(self, count: int, terse: float) -> list[dict]:
        """30 % drill rows; of the others, the share `terse` has the bare answer and the rest the worked one."""
        return [self.drill() if self.rng.random() < 0.3 else self.example(terse) for _ in range(count)]

    def example(self, terse: float) -> dict:
        problem = gsm8k(gsm8k_row(make_problem(self.rng, TWO_STEP if self.rng.random() < 0.7 else ONE_STEP)))
        worked = self.rng.random() >= terse
        prompt, completion = Pairs(self.template, self.tokenizer, worked, max_length=None).ids(problem)
        return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}

    def drill(self) -> dict:
        ids = self.encode("<|assistant|>")
        labels = [-100] * len(ids)
        for left, result in self.rng.sample(self.facts, 6):
            ids = ids + left + result
            labels = labels + [-100] * len(left) + result
        return {"input_ids": ids, "labels": labels}


def sft(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: list[dict],
    folder: Path,
    bar: Bar | None = None,
    **settings: Any,
) -> None:
    """One pass over `rows`, with `settings` of TrainingArguments; `folder` is where the trainer may write. Its
    steps are added to those of the bar."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if bar:
                bar.update(bar.done + 1)

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        warmup_steps=0.05,  # a share of the steps
        weight_decay=0.01,
        adam_beta2=0.95,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(policy, arguments, train_dataset=Dataset.from_list(rows), data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
    trainer.train()


def make_warm_policy(folder: Path, template: PromptTemplate, seed: int) -> None:
    """Make, train and save the policy: able to reason, and trained last to answer without working."""
    import torch

    rng = random.Random(seed + 1000)
    problems = [gsm8k(gsm8k_row(make_problem(rng, TWO_STEP))) for _ in range(400)]
    prompts = [template.user.replace("{question}", problem.question) for problem in problems]
    tokenizer = make_tokenizer(prompts + [template.target(problem, worked=True) for problem in problems])
    # Each prompt's instruction as one token: prompts of half the length
    tokenizer.add_tokens([text for text in template.user.split("{question}") if text])
    torch.manual_seed(seed)
    policy = make_policy(tokenizer)
    warm_start = WarmStart(tokenizer, template, seed + 2000)
    phases = ((600, 16, 0.0, 2e-3), (60, 32, 0.8, 5e-4))  # steps, rows per step, terse, learning rate
    with Bar("warm start (SFT)", sum(steps for steps, *_ in phases), "steps") as bar:
        for steps, size, terse, rate in phases:
            settings = {"seed": seed, "per_device_train_batch_size": size, "learning_rate": rate}
            sft(policy, tokenizer, warm_start.rows(steps * size, terse), folder, bar, **settings)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_room(folder: Path) -> None:
    """Make the folder and mark it as a quickstart's. An earlier quickstart is replaced, nothing else is."""
    mark = folder / ".quickstart"
    if mark.exists():
        print(f"replacing the earlier quickstart in {folder}")
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output_dir: {folder} exists and is not an earlier quickstart: give another --output_dir")
    with one_line("output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()


@run_logging()
def prepare(folder: str | Path, seed: int = 0, **overrides: Any) -> Recipe:
    """The quickstart's recipe for `train`, with its problems and its policy in this folder, the run's. They are made
    where they are missing, in about a minute; what an earlier call has made is used, whatever its seed. `overrides`
    replace keys of the recipe. Raises UserError for mistakes in them, before the policy is made."""
    folder = Path(folder)
    policy, problems = folder / "policy", folder / "arithmetic"
    keys: dict[str, Any] = {"output_dir": folder, "seed": seed, "model_name_or_path": policy, "dataset.path": problems}
    if missing := not policy.exists():
        write_problems(problems, seed)
    recipe = load_recipe(shipped("recipes") / "quickstart.yaml", **keys | overrides)
    if missing:
        log_to(folder / "training.log")
        logger.info("training a 0.6M-parameter policy with SFT, the warm start")
        with stage("loading PyTorch and transformers"):
            from transformers import Trainer  # noqa: F401
        begun = folder / "policy.begun"
        make_warm_policy(begun, recipe.template, seed)
        begun.rename(policy)
    return recipe


def main(options: argparse.Namespace) -> None:
    """Make a policy and problems, train, and print the accuracy before and after."""
    from grpo_math.generation.vllm_server import visible_gpus
    from grpo_math.report.report import report_end
    from grpo_math.train import train

    folder = options.output_dir
    make_room(folder)
    started = time.perf_counter()
    recipe = prepare(folder, options.seed)
    warm_start = time.perf_counter() - started

    results = train(recipe)
    if not results:  # stopped by a signal
        return
    results["seconds"]["warm_start"] = round(warm_start, 2)
    results["seconds"]["total"] = round(time.perf_counter() - started, 2)
    write_json(results, folder / "results.json")
    print_results(results)
    report_end(results, folder)
    print("your own problems: grpo-math init problems.jsonl")
    real = (
        ["--config", "gsm8k_qwen2.5_1.5b"] if visible_gpus() else ["--layout", "cpu", "--config", "gsm8k_smollm2_135m"]
    )
    next_step("check", *real)


def print_results(results: dict) -> None:
    """The accuracy and length before and after, and the seconds of each part."""
    print(f"\n{'':8}  accuracy  95 % interval  tokens")
    for moment in ("before", "after"):
        row = results[moment]
        low, high = row["accuracy_low"], row["accuracy_high"]
        print(f"{moment:8}  {row['accuracy']:8.3f}  {low:.3f} - {high:.3f}  {row['length']:6.1f}")
    seconds = ", ".join(
        f"{name} {results['seconds'][name]:.0f}" for name in ("warm_start", "train", "evaluate", "total")
    )
    print(f"\nseconds: {seconds}")
