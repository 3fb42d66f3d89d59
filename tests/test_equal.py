"""Whether an answer is worth the same as the gold: tests/equal.txt, properties, and every real gold there is."""

import ast
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grpo_math.data.loading import load_problems
from grpo_math.data.problem import DatasetSpec
from grpo_math.grading import PoolSettings, equal_all, grade, grade_batch
from grpo_math.grading.equal import settle
from grpo_math.grading.tokens import normalise


def equal(gold: str, answer: str) -> tuple[bool | None, str]:
    return equal_all([(gold, answer)])[0]


def cases() -> list[tuple[str, str, bool]]:
    found = []
    for line in (Path(__file__).parent / "equal.txt").read_text(encoding="utf-8").splitlines():
        for sign, right in ((" ⇔ ", True), (" ⇎ ", False)):
            if sign in line and not line.startswith("#"):
                gold, _, answer = line.partition(" -- ")[0].partition(sign)
                found.append((gold, answer, right))
    return found


CASES = cases()
GOLDS = sorted({gold for gold, _, _ in CASES if "boxed" not in gold})


def test_the_table_is_whole():
    assert len(CASES) >= 550
    assert len(set(CASES)) == len(CASES)


@pytest.mark.parametrize(("gold", "answer", "right"), CASES)
def test_equal(gold, answer, right):
    assert equal(gold, answer)[0] is right


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_equals_itself_in_every_dress(gold):
    for dressed in (gold, f" {gold} ", f"${gold}$", f"{gold}.", f"\\text{{}}{gold}"):
        assert settle(gold, dressed)[0] is True
    assert grade(f"so \\boxed{{{gold}}}.", gold, "boxed").correct is True


@pytest.mark.parametrize(
    ("gold", "answer", "how"),
    [
        ("72", "72", "exact"),
        ("72", " $72$. ", "exact"),
        ("72", "72.0", "number"),
        ("72", "73", "number"),
        ("72", "3 or 72", "structure"),
        ("2k", "k+k", "algebra"),
        ("y=2x", "2x", "algebra"),
        ("x=2", "2.0", "number"),
        ("(1,2)", "(1.0,2)", "structure"),
        (r"\text{even}", "Even", "text"),
        ("72", "seventy two", "text"),
        ("(B)", "B", "text"),
        (r"\sin^2 x", r"1-\cos^2 x", "math_verify"),
        (r"\sin^2 x", r"1-\cos x", "algebra"),
        (r"e^{x+y}", r"e^{xy}", "algebra"),
        (r"\sin x", "16", "algebra"),
        ("72", "9" * 2_000, "too_long"),
        ("72", "9^{9^{9}}", "too_long"),
        ("72", "(10^9)!", "too_long"),
        ("", "72", "unparsable_gold"),
        (r"\frac{1}{", "72", "unparsable_gold"),
        ("9" * 2_000, "72", "unparsable_gold"),
    ],
)
def test_the_tier_that_decides_is_named(gold, answer, how):
    assert equal(gold, answer)[1] == how


@pytest.mark.parametrize("gold", ["", " ", r"\frac{1}{", "$$", r"\foo{\bar"])
def test_an_unreadable_gold_scores_nobody(gold):
    assert grade(r"\boxed{4}", gold, "boxed").correct is None


def test_a_batch_keeps_its_order_and_grades_a_pair_once():
    golds = ["4", "5", "4", r"\sin^2 x", "4"]
    texts = [r"\boxed{4}", r"\boxed{4}", "none", r"\boxed{1-\cos^2 x}", r"\boxed{4}"]
    grades = grade_batch(texts, golds, "boxed")
    assert [g.correct for g in grades] == [True, False, False, True, True]
    assert [g.how for g in grades] == ["exact", "number", "no_answer", "math_verify", "exact"]
    assert [g.answer for g in grades] == ["4", "4", None, r"1-\cos^2 x", "4"]


def test_an_exception_in_the_grader_costs_one_completion_and_no_batch(monkeypatch, caplog):
    """Wherever it is raised: while the answer is found, read or compared."""
    import grpo_math.grading.batch as package
    import grpo_math.grading.equal as rules

    def broken(function, bad):
        return lambda *given: 1 / 0 if bad in given else function(*given)

    texts = [r"\boxed{1}", r"\boxed{2}", r"\boxed{1}, \boxed{3}", r"\boxed{2}"]
    monkeypatch.setattr(rules, "settle", broken(settle, "1"))
    grades = grade_batch(texts, ["2"] * 4, "boxed")
    assert [(g.correct, g.how) for g in grades] == [
        (False, "crashed"),
        (True, "exact"),
        (False, "structure"),
        (True, "exact"),
    ]
    monkeypatch.setattr(package, "answers", broken(package.answers, texts[1]))
    assert [g.how for g in grade_batch(texts, ["2"] * 4, "boxed")] == ["crashed", "crashed", "structure", "crashed"]
    monkeypatch.setattr(rules, "sums_up", broken(rules.sums_up, ["1", "3"]))
    assert grade(texts[2], "2").how == "structure"
    assert "counted as wrong, please report it" in caplog.text
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("completions", "golds", "style", "message"),
    [
        (
            [[{"role": "assistant", "content": "4"}]],
            ["4"],
            "boxed",
            "expected as many completions as golds, all strings, got 1 and 1",
        ),
        (["4"], [4], "boxed", "all strings"),
        (["4", "5"], ["4"], "boxed", "expected as many completions as golds, all strings, got 2 and 1"),
        (["4"], ["4"], "box", "unknown answer style 'box': use one of boxed, hash"),
    ],
)
def test_arguments_that_no_policy_can_cause_raise(completions, golds, style, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grade_batch(completions, golds, style)


INTEGERS = st.integers(-(10**12), 10**12)
PIECES = st.sampled_from(
    r"\frac \sqrt { } ( ) [ ] ^ _ , ; = < \le \cup \pm \text{and} or and x y 1 2 10 0.5 . % \% ! | + - \cdot / \pi "
    r"\infty \sin \{ \} \begin{pmatrix} \end{pmatrix} & \\ : cm ° ½ 1,000 \boxed \left( \right) e i".split()
)
ANSWERS = (
    st.text(max_size=60) | st.lists(PIECES, max_size=25).map(" ".join) | st.lists(PIECES, max_size=25).map("".join)
)


@given(ANSWERS)
@example("**5**.")
@example("\\{}>")
@example("\\°")
@example("\\\\!¤")
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWERS, ANSWERS)
def test_settling_never_raises(gold, answer):
    correct, how = settle(gold, answer)
    assert correct in (True, False, None)
    assert how


@settings(max_examples=500, deadline=None)
@given(ANSWERS)
def test_what_is_readable_equals_itself(text):
    correct, how = settle(text, text)
    assert correct is True or how == "unparsable_gold"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", r"\ln(1e5000)"),
        ("5", r"\log(10^{5000})"),
        ("5", r"|x+9^{5000}|"),
        (r"\sin(1e5000)", "5"),
        ("5", "f_{" + "\ud800" * 210 + "}(1)"),
        ("5", "5" + "." * 400_000),
        ("5", "{" * 450 + "5" + "}" * 450),
        ("5", "-" * 900 + "5"),
        ("5", "2" + "^2" * 400),
        ("5", "+".join([r"(\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+9)^{500}"] * 5) + r"\pm1" * 4),
    ],
)
def test_the_size_of_an_answer_breaks_nothing(gold, answer):
    start = time.process_time()
    assert settle(gold, answer)[0] is not True
    assert time.process_time() - start < 2


@given(INTEGERS)
def test_a_number_equals_itself_however_it_is_written(number):
    for written in (f"{number:,}", f"{number}.0", f"\\${number}", f"{2 * number}/2", f"\\frac{{{-number}}}{{-1}}"):
        assert settle(str(number), written)[0] is True


@given(INTEGERS, INTEGERS)
def test_two_integers_are_equal_only_if_they_are(a, b):
    assert settle(str(a), str(b))[0] is (a == b)


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(-99, 99), st.integers(1, 99))
def test_fractions_are_equal_exactly_when_they_are(a, b, c, d):
    forward = settle(f"\\frac{{{a}}}{{{b}}}", f"{c}/{d}")[0]
    assert forward is (a * d == b * c)
    assert settle(f"{c}/{d}", f"\\frac{{{a}}}{{{b}}}")[0] is forward


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.randoms())
def test_a_list_may_be_shuffled_and_a_point_may_not(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    text = ["%s" * len(numbers) % tuple(f"{n}, " for n in row) for row in (numbers, shuffled)]
    first, second = (row.rstrip(", ") for row in text)
    assert settle(first, second)[0] is True
    assert settle(f"({first})", f"({second})")[0] is (numbers == shuffled)


@given(st.integers(-20, 20), st.integers(1, 20), st.integers(-20, 20))
def test_a_product_equals_what_it_expands_to(a, b, c):
    assert settle(f"(x+{a})({b}x+{c})".replace("+-", "-"), f"{b}x^2 + ({a * b + c})x + ({a * c})")[0] is True


def test_model_output_never_runs(tmp_path):
    marker = tmp_path / "ran"
    touch = f"open({str(marker)!r},'w')"
    strings = [
        f"__import__('os').system('touch {marker}')",
        f'exec("{touch}")',
        f'eval("{touch}")',
        f"(lambda: {touch})()",
        f"[{touch} for _ in (1,)]",
        f"{touch}.write('x')",
        f"f'{{{touch}}}'",
        "{0.__class__.__init__.__globals__}",
        "().__class__.__bases__[0].__subclasses__()",
        f"\\sin({touch})",
        f"\\operatorname{{{touch}}}",
        f"\\lfloor {touch} \\rfloor",
        f"\\overline{{__import__('os').system('touch {marker}')}}",
        f"\\input{{{marker}}}",
        f"\\write18{{touch {marker}}}",
        "%s%s%s%n",
        "${7*7}",
        "{{7*7}}",
    ]
    grades = grade_batch([f"\\boxed{{{text}}}" for text in strings], ["48"] * len(strings), "boxed")
    assert not any(g.correct for g in grades)
    assert not marker.exists()


def test_grading_imports_nothing_heavy():
    code = "import sys, grpo_math.rewards.reward; print([m for m in ('torch','trl','transformers','sympy','math_verify') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_grader_stands_alone():
    """It imports nothing of grpo_math but its errors, and only one of its files math_verify."""
    folder = Path(__file__).parents[1] / "src" / "grpo_math" / "grading"
    found = {}
    for path in folder.glob("*.py"):
        nodes = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        found[path.name] = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
    ours = {name for names in found.values() for name in names if name.startswith("grpo_math")}
    assert {name for name in ours if not name.startswith("grpo_math.grading")} == {"grpo_math.errors"}
    assert [name for name, names in found.items() if "math_verify" in names] == ["worker.py"]


def test_the_labelled_cases(real_data):
    """Cases that others have labelled, next to the real data where they are there."""
    path = real_data.parent / "cases" / "grading.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = [
        row["id"]
        for row in rows
        if (grade(row["completion"], row["gold"], row["style"]).correct is True) is not row["expect"]
    ]
    assert wrong == []


def dresses(answer: str) -> list[str]:
    return [answer, f"${answer}$", f"\\boxed{{{answer}}}"]


def test_every_real_gsm8k_gold_is_right_in_every_dress(real_data):
    for split in ("train", "test"):
        problems = load_problems(DatasetSpec(name="gsm8k", path=str(real_data / "gsm8k"), split=split)).problems
        golds = [p.answer for p in problems]
        assert all(settle(p.answer, dressed)[0] for p in problems for dressed in dresses(p.answer)[:2])
        assert all(g.correct for g in grade_batch([rf"\boxed{{{gold}}}" for gold in golds], golds, "boxed"))
        assert all(g.correct for g in grade_batch([f"{p.worked}\n#### {p.answer}" for p in problems], golds, "hash"))
        others = golds[1:] + golds[:1]
        for gold, other in zip(golds, others, strict=True):
            assert settle(gold, other)[0] is (float(gold) == float(other))


def test_every_real_math500_gold_is_right_in_every_dress(real_data):
    problems = load_problems(DatasetSpec(name="math500", path=str(real_data / "math500"), split="test")).problems
    golds = [p.answer for p in problems]
    assert all(settle(p.answer, dressed)[0] for p in problems for dressed in dresses(p.answer)[:2])
    assert all(g.correct for g in grade_batch([rf"\boxed{{{gold}}}" for gold in golds], golds, "boxed"))
    worked = grade_batch([p.worked for p in problems], golds, "boxed")
    assert all(g.correct for g in worked)
    assert sum(g.how != "math_verify" for g in worked) >= 0.9 * len(worked)
    others = golds[1:] + golds[:1]
    same = [(gold, other) for gold, other in zip(golds, others, strict=True) if equal(gold, other)[0]]
    assert all({gold, other} in ({gold}, {"5", "x=5"}) for gold, other in same)


def splice(rng: random.Random) -> str:
    """Pieces of two cases of the table, glued together and nibbled at."""
    one, two = (rng.choice(rng.choice(CASES)[:2]) for _ in range(2))
    text = one[: rng.randint(0, len(one))] + two[rng.randint(0, len(two)) :]
    for _ in range(rng.randint(0, 3)):
        at = rng.randint(0, len(text))
        text = (
            text[:at]
            + rng.choice(["", "^", "{", "}", "9" * 20, "!", r"\frac", r"\sin", "(", ",", "%", "x"])
            + text[at + 1 :]
        )
    return text * rng.choice([1, 1, 1, 1, 5])


@pytest.mark.slow
def test_a_minute_of_fuzzing_neither_raises_nor_misses_the_deadline():
    rng, end, count, longest = random.Random(0), time.monotonic() + 60, 0, 0.0
    while time.monotonic() < end:
        gold, answer = rng.choice(GOLDS), splice(rng)
        start = time.process_time()
        settle(gold, answer)
        longest = max(longest, time.process_time() - start)
        pairs = [(gold, answer) for gold in rng.sample(GOLDS, 5)]
        start = time.monotonic()
        verdicts = equal_all(pairs)
        assert time.monotonic() - start < 5 * (PoolSettings.timeout + 5)  # a kill, and a new worker, for each
        assert all(correct in (True, False, None) and how for correct, how in verdicts)
        count += 1
    print(f"{count:,} spliced answers, the slowest took the exact tiers {longest:.3f} CPU s")
    assert longest < 2
