"""Grading, compared with math-verify and TRL's accuracy_reward: completions per CPU second, and wrong verdicts; also
the share of each tier, and a hostile batch, which TRL's reward gets too.

usage: python benchmarks/grading.py [--cases FILE.jsonl ...] [--show] [--errors-only]

Speed: the graders take turns with the same completions in the same process. Each figure is the median of 5 runs after a
warm-up, with the slowest and the fastest, and counts the workers' CPU time; no verdict is remembered from run to run.
math-verify gets the gold in \\boxed{}, which it reads fastest, and the first eighth of the completions.

Errors: false positives (wrong, and rewarded) and false negatives (right, and not rewarded) on tests/equal.txt and on
the rows {gold, completion, style, expect} of every --cases file. --show prints a line for every verdict that differs
from the label. The peers get the gold in dollar signs, and the whole completion.

Set GRPO_MATH_TEST_DATA to a folder with gsm8k/ and math500/ to add MATH-500 (six completions per problem, three of them
right), and the tier shares on the golds and worked solutions of both.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
from spread import spread

from grpo_math.grading import grade_batch
from grpo_math.grading.batch import known
from grpo_math.grading.equal import settle
from grpo_math.grading.pool import pool
from grpo_math.grading.reader import read
from grpo_math.grading.tokens import normalise

RUNS = 5
WORDS = ["so", "then", "the", "first", "number", "of", "apples", "is", "added", "to", "half", "what", "remains", "we"]
SQUARES = [2, 3, 5, 6, 7]
TRL_HOSTILE_LIMIT = 60  # seconds


def prose(rng: random.Random, words: int) -> str:
    """A worked text with a calculation now and then."""
    parts = []
    for _ in range(words // 8):
        parts.append(" ".join(rng.choices(WORDS, k=7)))
        a, b = rng.randint(2, 90), rng.randint(2, 90)
        parts.append(f"{a}+{b}={a + b}.")
    return " ".join(parts)


def gsm8k_like(rng: random.Random) -> tuple[str, str]:
    """(gold, answer): an integer, a decimal, money or a fraction; right four times out of five, in another dress."""
    value = rng.randint(2, 20_000)
    gold, answer = rng.choice(
        [
            (f"{value}", f"{value}"),
            (f"{value}", f"{value:,}"),
            (f"{value}", f"\\${value:,}.00"),
            (f"{value}", f"{value} \\text{{ dollars}}"),
            (f"{value / 4}", f"{value / 4:.2f}"),
            (f"{value / 4}", f"\\frac{{{value}}}{{4}}"),
        ]
    )
    return gold, answer if rng.random() < 0.8 else str(value + 1)


def math_like(rng: random.Random) -> tuple[str, str]:
    """(gold, answer) in the forms of MATH's answers; right four times out of five, in another dress."""
    a, b, c, root = rng.randint(2, 9), rng.randint(2, 9), rng.randint(10, 99), rng.choice(SQUARES)
    gold, answer = rng.choice(
        [
            (f"{c}", f"{c}"),
            (f"\\frac{{{a}}}{{{c}}}", f"\\dfrac{{{2 * a}}}{{{2 * c}}}"),
            (f"{a}\\sqrt{{{root}}}", f"\\sqrt{{{a * a * root}}}"),
            (f"({a},{c})", f"\\left( {a}, {c} \\right)"),
            (f"[{a},{c})", f"x \\in [{a}, {c})"),
            (f"{a}x^2+{b}x", f"x({a}x+{b})"),
            (f"{c}^\\circ", f"{c}"),
            (f"{c}\\%", f"{c}"),
            (f"{a},{c}", f"{c}, {a}"),
            (f"{a}\\pi", f"{a} \\pi \\text{{ cm}}^2"),
            (f"\\begin{{pmatrix}} {a} \\\\ {b} \\end{{pmatrix}}", f"\\begin{{bmatrix}} {a} \\\\ {b} \\end{{bmatrix}}"),
            (f"y = {a}x + {b}", f"{a}x+{b}"),
            (f"{c}_{{{a + 1}}}", f"{c}_{a + 1}"),
            ("\\text{even}", "even"),
        ]
    )
    return gold, answer if rng.random() < 0.8 else f"{c + 1}"


def batch(make, size: int, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    pairs = [make(rng) for _ in range(size)]
    texts = [f"{prose(rng, rng.randint(50, 200))} The answer is $\\boxed{{{answer}}}$." for _, answer in pairs]
    return [gold for gold, _ in pairs], texts


IDENTITIES = [  # golds, and answers that only math-verify finds right
    (r"\sin 2x", r"2\sin x\cos x"), (r"\cot x", r"\frac{\cos x}{\sin x}"), ("3", r"\log_2 8"),
    (r"2^{n+1}", r"2\cdot 2^n"), (r"\ln 6", r"\ln 2+\ln 3"),
]  # fmt: skip


def math500(folder: Path) -> tuple[list[str], list[str]]:
    """Golds, and completions: the worked solutions with their answers as they are, respelled, in an equal form, with
    one number changed, from another problem, and cut off before the answer."""
    rng = random.Random(0)
    rows = [json.loads(line) for line in (folder / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    solved = [(row["answer"], row["solution"].partition("\\boxed")[0], None) for row in rows]
    solved += [(gold, solved[place][1], equal) for place, (gold, equal) in enumerate(IDENTITIES)]
    pairs = []
    for gold, text, equal in solved:
        respelled = gold.replace(r"\frac", r"\dfrac").replace("(", r"\left( ").replace(")", r" \right)")
        formula = not re.search(r"[,=<>_%$]|\\(?:text|begin|in|cup|pm|le|ge|circ)\b", gold)
        twice = rf"\frac{{2({gold})}}{{2}}" if formula else gold
        digits = list(re.finditer(r"\d+", gold))
        at = rng.choice(digits).span() if digits else (0, 0)
        changed = f"{gold[: at[0]]}{int(gold[slice(*at)] or 1) + 1}{gold[at[1] :]}"
        answers = [gold, respelled, equal or twice, changed, rng.choice(rows)["answer"]]
        pairs += [(gold, f"{text}\\boxed{{{answer}}}.$") for answer in answers]
        pairs.append((gold, text[: len(text) * 2 // 3]))
    return [gold for gold, _ in pairs], [text for _, text in pairs]


def cpu_seconds(function, *arguments) -> float:
    """CPU time of one call, in this process and in its workers."""

    def spent() -> float:
        this = psutil.Process()
        return sum(sum(process.cpu_times()[:4]) for process in (this, *this.children(recursive=True)))

    start = spent()
    function(*arguments)
    return spent() - start


def ours(golds: list[str], texts: list[str]) -> Counter:
    for remembered in (settle, read, normalise):
        remembered.cache_clear()
    known.clear()
    return Counter(grade.how for grade in grade_batch(texts, golds, "boxed"))


def math_verify(golds: list[str], texts: list[str]) -> None:
    from math_verify import parse, verify

    for gold, text in zip(golds, texts, strict=True):
        verify(parse(f"\\boxed{{{gold}}}"), parse(text))


def trl(golds: list[str], texts: list[str]) -> None:
    from trl.rewards import accuracy_reward

    accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], [f"${gold}$" for gold in golds])


def speed_table(folder: Path | None) -> None:
    print("| completions | per CPU s, with worker start | with workers at work | math-verify | ratios | exact tiers |")
    print("|---|---|---|---|---|---|")
    sets = {"GSM8K-like": batch(gsm8k_like, 3_000, seed=0), "MATH-like": batch(math_like, 3_000, seed=0)}
    sets |= {"MATH-500": math500(folder)} if folder else {}
    for name, (golds, texts) in sets.items():
        few = len(golds) // 8
        math_verify(golds[:20], texts[:20])
        exact = 1 - ours(golds, texts)["math_verify"] / len(golds)
        rates: list[list[float]] = [[], [], []]
        for _ in range(RUNS):
            pool.close()
            for place, (grader, count) in enumerate([(ours, len(golds)), (ours, len(golds)), (math_verify, few)]):
                rates[place].append(count / cpu_seconds(grader, golds[:count], texts[:count]))
        cold, warm, peer = map(statistics.median, rates)
        shown = " | ".join([f"{name}, {len(golds):,}", *(spread(rate, ",.0f") for rate in rates)])
        print(f"| {shown} | {cold / peer:.1f}x, {warm / peer:.1f}x | {exact:.1%} |", flush=True)


def tier_table(folder: Path) -> None:
    """Every real gold against its own worked solution."""
    from grpo_math.data.loading import load_problems
    from grpo_math.data.problem import DatasetSpec

    print("\n| golds | right | tiers |\n|---|---|---|")
    for name, style, split in (("gsm8k", "hash", "train"), ("gsm8k", "hash", "test"), ("math500", "boxed", "test")):
        problems = load_problems(DatasetSpec(name=name, path=str(folder / name), split=split)).problems
        texts = [f"{p.worked}\n#### {p.answer}" if style == "hash" else p.worked for p in problems]
        grades = grade_batch(texts, [problem.answer for problem in problems], style)
        tiers = ", ".join(f"{how} {count / len(grades):.1%}" for how, count in Counter(g.how for g in grades).items())
        print(f"| {name} {split} | {sum(g.correct is True for g in grades):,} of {len(grades):,} | {tiers} |")


HOSTILE = [
    r"9^{9^{9}}", r"2^{2^{2^{2^{2^{2}}}}}", "(10^9)!", "((((9!)!)!)!)!", r"\binom{10^9}{5\cdot10^8}", "x^{1000000}",
    "(" * 5_000 + "1" + ")" * 5_000, "+".join(["1"] * 20_000), "9" * 100_000, "word " * 200_000, "(x+y+z)^{100}",
    r"\frac{1}{" * 1_500 + "2" + "}" * 1_500, r"\sqrt{" * 3_000 + "2" + "}" * 3_000, r"\sin(9^{9^9})", "2^{99999999}",
    r"\begin{pmatrix}" + r"\\".join(["&".join(["1"] * 100)] * 100) + r"\end{pmatrix}", "1e999999999",
    r"\{" + ",".join(map(str, range(5_000))) + r"\}", r"\tan^{100}(x)+\sec^{99}(x)", r"e^{e^{e^{e^{e^{e}}}}}",
]  # fmt: skip


def hostile_batch() -> tuple[list[str], list[str]]:
    """64 completions: 60 hostile ones, 4 good ones."""
    answers = ["4"] * 4 + [(HOSTILE * 3)[index] + " " * (index // len(HOSTILE)) for index in range(59)]
    return ["4"] * 64, [rf"\boxed{{{answer}}}" for answer in answers] + [r"\boxed{" * 50_000]


def hostile_table() -> None:
    golds, texts = hostile_batch()
    start = time.perf_counter()
    grades = grade_batch(texts, golds, "boxed")
    wall = time.perf_counter() - start
    right = [grade.correct for grade in grades] == [True] * 4 + [False] * 60
    print(f"\nhostile batch of 64: ours {wall:.1f} s wall, verdicts {'all right' if right else 'WRONG'}", end="; ")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import grading; "
    code += "grading.trl(*grading.hostile_batch())"
    try:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=TRL_HOSTILE_LIMIT)
        print(f"TRL {time.perf_counter() - start:.1f} s")
    except subprocess.TimeoutExpired:
        print(f"TRL over {TRL_HOSTILE_LIMIT} s, stopped")
    print(json.dumps(Counter(grade.how for grade in grades)))


def table_cases() -> list[dict]:
    """The cases of tests/equal.txt as boxed completions."""
    found = []
    for line in (Path(__file__).parents[1] / "tests" / "equal.txt").read_text(encoding="utf-8").splitlines():
        for sign, right in ((" ⇔ ", True), (" ⇎ ", False)):
            if sign in line and not line.startswith("#"):
                gold, _, answer = line.partition(" -- ")[0].partition(sign)
                completion = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
                found.append({"gold": gold, "completion": completion, "style": "boxed", "expect": right})
    return found


def ours_verdicts(cases: list[dict]) -> list[bool | None]:
    return [grade_batch([case["completion"]], [case["gold"]], case["style"])[0].correct for case in cases]


def math_verify_verdicts(cases: list[dict]) -> list[bool | None]:
    from math_verify import parse, verify

    return [verify(parse(f"${case['gold']}$"), parse(case["completion"])) for case in cases]


def trl_verdicts(cases: list[dict]) -> list[bool | None]:
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": case["completion"]}] for case in cases]
    scores = [accuracy_reward([one], [f"${case['gold']}$"])[0] for one, case in zip(completions, cases, strict=True)]
    return [None if score is None else score == 1.0 for score in scores]


KINDS = {(False, True): "false positive", (True, False): "false negative"}


def error_table(files: list[Path], show: bool) -> None:
    """False positives and negatives of each grader. An exception counts as neither, and in a column of its own."""
    sets = {"tests/equal.txt": table_cases()}
    sets |= {path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files}
    print("\n| cases (right, wrong) | grader | false positives | false negatives | exceptions |\n|---|---|---|---|---|")
    lines = []
    for name, cases in sets.items():
        right = sum(case["expect"] for case in cases)
        for grader in (ours_verdicts, math_verify_verdicts, trl_verdicts):
            counts, who = Counter(), grader.__name__.removesuffix("_verdicts")
            for case in cases:
                try:
                    (verdict,) = grader([case])
                    kind = KINDS.get((case["expect"], verdict is True))
                except Exception:
                    kind = "exception"
                counts[kind] += 1
                lines += [f"{name}: {who}: {kind}: {case['gold']!r}, {case['completion'][:200]!r}"] if kind else []
            found = " | ".join(str(counts[kind]) for kind in (*KINDS.values(), "exception"))
            print(f"| {name} ({right}, {len(cases) - right}) | {who} | {found} |")
    print("\n".join(lines) if show else "", end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Grading: speed and wrong verdicts, compared with the peers")
    parser.add_argument("--cases", type=Path, nargs="*", default=[], help="labelled cases, besides tests/equal.txt")
    parser.add_argument("--show", action="store_true", help="a line for every wrong verdict")
    parser.add_argument("--errors-only", action="store_true", help="no timing")
    options = parser.parse_args()
    if not options.errors_only:
        data = Path(os.environ["GRPO_MATH_TEST_DATA"]) if "GRPO_MATH_TEST_DATA" in os.environ else None
        speed_table(data)
        if data:
            tier_table(data)
        hostile_table()
    error_table(options.cases, options.show)
