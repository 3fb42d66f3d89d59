"""The main job on a plain CPU in about two minutes: `make quickstart`.

There is no model hub to ask, so the policy is made here: a 0.6M-parameter Llama and a tokenizer, both from nothing.
Two-step word problems in GSM8K's form are written to `DIR/arithmetic`. SFT on worked solutions teaches the model to
reason; a short second phase of SFT on bare answers makes it blurt by habit, which it does badly. GRPO then has
something real to discover from the correctness reward alone: writing out the working pays. The GRPO run is
`grpo_math.train` on recipes/quickstart.yaml, the code and the rewards that train any other model.

usage: grpo-math quickstart [--seed 0] [--output_dir runs/quickstart]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads only slow so small a model down
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import random
import shutil
import time
from pathlib import Path

from grpo_math.data.prompts import token_ids
from grpo_math.errors import UserError, one_line
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import write_json

RECIPE = Path("recipes/quickstart.yaml")
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
    """The problem as a row of GSM8K's files: calculator marks in the working, the answer after ####."""
    lines = [f"{left}=<<{left}={right}>>{right}" for left, right in problem["steps"]]
    return {"question": problem["question"], "answer": "\n".join([*lines, f"#### {problem['answer']}"])}


def write_problems(folder: Path, seed: int, train: int = 512, test: int = 200) -> None:
    """Write train.jsonl and test.jsonl; no test question (names and things aside) occurs in training."""
    rng, seen = random.Random(seed), set()
    splits = {"train": [], "test": []}
    for split, size in (("train", train), ("test", test)):
        while len(splits[split]) < size:
            problem = make_problem(rng, TWO_STEP)
            key = tuple(problem["steps"])
            if split == "train":
                seen.add(key)
            if split == "train" or key not in seen:
                splits[split].append(gsm8k_row(problem))
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tokenizer(texts: list[str], vocab_size: int = 512):
    """A byte-level BPE tokenizer trained on `texts`, one token a digit, with a chat template."""
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


def make_policy(tokenizer, hidden_size: int = 128):
    """A two-layer Llama, 0.58M parameters at the default width, from the global torch seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    policy = LlamaForCausalLM(
        LlamaConfig(
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
    )
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.07)
    return policy


def worked_answer(problem: dict) -> str:
    return "\n".join(f"{left}={right}" for left, right in problem["steps"]) + "\n" + bare_answer(problem)


def bare_answer(problem: dict) -> str:
    return f"\\boxed{{{problem['answer']}}}"


def arithmetic_facts() -> list[tuple[str, str]]:
    """Every sum, difference and product a two-step problem can need, as ("3+4=", "7")."""
    facts = [
        (f"{left}{sign}{right}=", calculate(left, sign, right))
        for left in range(28)
        for sign in "+-"
        for right in range(1, 10)
    ]
    facts += 3 * [(f"{left}*{right}=", left * right) for left in range(2, 6) for right in range(2, 6)]
    return [(left, str(result)) for left, result in facts if result >= 0]


class WarmStart:
    """Rows for SFT: prompts with an answer, and drill rows of eight bare facts; loss on answers and results alone."""

    def __init__(self, tokenizer, template, seed: int):
        self.tokenizer, self.template, self.rng = tokenizer, template, random.Random(seed)
        self.facts = [(self.encode(left), self.encode(result + "\n")) for left, result in arithmetic_facts()]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def rows(self, count: int, terse: float) -> list[dict]:
        """30 % drill rows; of the others, the share `terse` has the bare answer and the rest the worked one."""
        return [self.drill() if self.rng.random() < 0.3 else self.example(terse) for _ in range(count)]

    def example(self, terse: float) -> dict:
        problem = make_problem(self.rng, TWO_STEP if self.rng.random() < 0.7 else ONE_STEP)
        prompt = self.template.prompt(problem["question"], self.tokenizer)
        answer = bare_answer(problem) if self.rng.random() < terse else worked_answer(problem)
        completion = [*self.encode(answer), self.tokenizer.eos_token_id]
        ids = token_ids(prompt, self.tokenizer)
        return {"input_ids": ids + completion, "labels": [-100] * len(ids) + completion}

    def drill(self) -> dict:
        ids = self.encode("<|assistant|>")
        labels = [-100] * len(ids)
        for left, result in self.rng.sample(self.facts, 8):
            ids = ids + left + result
            labels = labels + [-100] * len(left) + result
        return {"input_ids": ids, "labels": labels}


def sft(policy, tokenizer, rows: list[dict], batch_size: int, learning_rate: float, seed: int, folder: Path) -> None:
    """One pass over `rows`; `folder` is where the trainer may write."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=0.05,  # a share of the steps
        weight_decay=0.01,
        adam_beta2=0.95,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    pad = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(policy, arguments, train_dataset=Dataset.from_list(rows), data_collator=pad)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def make_warm_policy(folder: Path, template, seed: int) -> None:
    """Make, warm up and save the policy: it knows how to reason, and by habit does not."""
    import torch

    rng = random.Random(seed + 1000)
    problems = [make_problem(rng, TWO_STEP) for _ in range(1500)]
    tokenizer = make_tokenizer(
        [template.user.replace("{question}", p["question"]) for p in problems] + [worked_answer(p) for p in problems]
    )
    torch.manual_seed(seed)
    policy = make_policy(tokenizer)
    warm_start = WarmStart(tokenizer, template, seed + 2000)
    sft(policy, tokenizer, warm_start.rows(600 * 16, terse=0.0), 16, 2e-3, seed, folder)
    sft(policy, tokenizer, warm_start.rows(60 * 32, terse=0.8), 32, 5e-4, seed, folder)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_room(folder: Path) -> None:
    """A new folder with our mark. An earlier quickstart is replaced; anything else is left alone."""
    mark = folder / ".quickstart"
    if mark.exists():
        print(f"replacing the earlier quickstart in {folder}")
        shutil.rmtree(folder)
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no quickstart: give another --output_dir")
    with one_line("output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()


def main(argv: list[str]) -> None:
    from grpo_math.train import train

    parser = argparse.ArgumentParser(prog="grpo-math quickstart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args(argv)
    folder = options.output_dir
    overrides = {
        "output_dir": folder,
        "seed": options.seed,
        "model_name_or_path": folder / "policy",
        "dataset.path": folder / "arithmetic",
    }
    if not RECIPE.exists():
        raise UserError(f"no {RECIPE} here: run the quickstart in the repository's folder")
    make_room(folder)
    started = time.perf_counter()
    write_problems(folder / "arithmetic", options.seed)
    (folder / "policy").mkdir()
    arguments = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    recipe = load_recipe(["--config", str(RECIPE), *arguments])
    print("making and warming up a 0.6M-parameter policy (SFT) ...", flush=True)
    make_warm_policy(folder / "policy", recipe.template, options.seed)
    warm_start = time.perf_counter() - started

    results = train(recipe)
    if not results:  # stopped by a signal
        return
    results["seconds"]["warm_start"] = round(warm_start, 2)
    results["seconds"]["total"] = round(time.perf_counter() - started, 2)
    write_json(results, folder / "results.json")
    print_table(results, folder)

    from grpo_math.report.report import report_end

    report_end(results, folder)


def print_table(results: dict, folder: Path) -> None:
    print(f"\n{'':8}  accuracy  95 % interval  tokens")
    for moment in ("before", "after"):
        row = results[moment]
        low, high = row["accuracy_low"], row["accuracy_high"]
        print(f"{moment:8}  {row['accuracy']:8.3f}  {low:.3f} - {high:.3f}  {row['length']:6.1f}")
    seconds = results["seconds"]
    shown = ("warm_start", "train", "evaluate", "total")
    print("\nseconds: " + ", ".join(f"{name} {seconds[name]:.0f}" for name in shown))
    print(f"run folder: {folder}")
