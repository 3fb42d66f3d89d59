"""Where the answer stands, and whether it is right."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.grading import STYLES, equal, extract, grade, well_formed
from grpo_math.grading.equal import normalise


@pytest.mark.parametrize(
    ("text", "style", "answer"),
    [
        (r"so \boxed{72}.", "boxed", "72"),
        (r"\boxed{1} no, \boxed{2}", "boxed", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", "boxed", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{3}", "boxed", "3"),
        (r"\boxed {4}", "boxed", "4"),
        (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
        (r"\boxed{1} then \boxed{2", "boxed", None),
        (r"\boxed{}", "boxed", None),
        (r"\boxed", "boxed", None),
        (r"\boxed{a\\}", "boxed", r"a\\"),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", "boxed", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        ("72", "boxed", None),
        ("", "boxed", None),
        ("5*2=10\n#### 10", "hash", "10"),
        ("#### 10\n#### 12 \nmore", "hash", "12"),
        ("#### ", "hash", None),
        ("10", "hash", None),
        ("<think>t</think> <answer>7</answer>", "answer_tag", "7"),
        ("<answer>1</answer> <answer> 2 </answer>", "answer_tag", "2"),
        (r"<answer>It is \boxed{3}</answer>", "answer_tag", "3"),
        ("<answer></answer>", "answer_tag", None),
        ("<answer>7", "answer_tag", None),
        ("7</answer>", "answer_tag", None),
    ],
)
def test_extract(text, style, answer):
    assert extract(text, style) == answer


@pytest.mark.parametrize(
    ("text", "style", "good"),
    [
        (r"2+2=4, \boxed{4}", "boxed", True),
        (r"\boxed{4", "boxed", False),
        (r"\boxed{}", "boxed", False),
        ("4", "boxed", False),
        ("2+2=4\n#### 4", "hash", True),
        ("#### 4\n", "hash", True),
        ("so #### 4", "hash", False),
        ("#### 4\nand more", "hash", False),
        ("<think>t</think><answer>4</answer>", "answer_tag", True),
        (" <think>\nt\n</think>\n<answer>4</answer> ", "answer_tag", True),
        ("<think>t</think><answer>4</answer> and more", "answer_tag", False),
        ("<answer>4</answer>", "answer_tag", False),
        ("<think>a<think>b</think></think><answer>4</answer>", "answer_tag", False),
        ("<think>t</think><answer>4</answer><answer>5</answer>", "answer_tag", False),
        ("<think>t</think>but<answer>4</answer>", "answer_tag", False),
        ("<think>t</think><answer></answer>", "answer_tag", False),
    ],
)
def test_well_formed(text, style, good):
    assert well_formed(text, style) is good


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("piece", [r"\boxed{", "{", "}", "#### ", "####\n", "<answer>", "<think>", "</answer>", "a\n"])
def test_a_megabyte_of_anything_takes_no_time(style, piece):
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    well_formed(text, style)
    well_formed("<think>" + text + "</think><answer>1</answer>", style)
    assert time.process_time() - start < 5  # quadratic would be hours


@pytest.mark.parametrize(
    ("gold", "answer", "right", "how"),
    [
        ("72", "72", True, "exact"),
        ("72", " 72. ", True, "exact"),
        ("1000", "1,000", True, "exact"),
        ("18", r"\$18", True, "exact"),
        ("1,2,3", "123", False, "math_verify"),
        ("12", "1 2", False, "math_verify"),
        ("(1,234)", "(1234)", False, "math_verify"),
        ("x + 1", "x+1", True, "exact"),
        (r"\text{no solution}", r"\text{no  solution}", True, "math_verify"),
        ("72", "73", False, "math_verify"),
        ("0.5", r"\frac{1}{2}", True, "math_verify"),
        (r"\frac{3}{4}", r"\dfrac34", True, "math_verify"),
        ("72", "72.0", True, "math_verify"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})", True, "math_verify"),
        (r"x^2+1", r"1+x^2", True, "math_verify"),
        ("7", "seven or eight", False, "math_verify"),
    ],
)
def test_equal(gold, answer, right, how):
    assert equal(gold, answer) == (right, how)


@pytest.mark.parametrize(
    ("completion", "gold", "verdict"),
    [
        (r"\boxed{4}", "4", (True, "exact")),
        (r"\boxed{5}", "4", (False, "math_verify")),
        ("4", "4", (False, "no_answer")),
        (r"\boxed{4}", "", (None, "unparsable_gold")),
        (r"\boxed{" + "9" * 100_000 + "}", "4", (False, "math_verify")),
    ],
)
def test_grade(completion, gold, verdict):
    found = grade(completion, gold, "boxed")
    assert (found.correct, found.how) == verdict


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.integers(-(10**12), 10**12))
def test_a_number_equals_itself_with_separators(number):
    assert equal(str(number), f"{number:,}") == (True, "exact")


@settings(max_examples=30, deadline=None)
@given(st.integers(-999, 999), st.integers(-999, 999))
def test_two_integers_are_equal_only_if_they_are(a, b):
    assert equal(str(a), str(b))[0] is (a == b)


@given(st.text(), st.sampled_from(sorted(STYLES)))
def test_extracting_never_raises_and_never_gives_an_empty_answer(text, style):
    assert extract(text, style) != ""


def test_every_real_gsm8k_gold_is_right_in_its_own_box(real_data):
    from grpo_math.data import DatasetSpec, load_problems

    for split in ("train", "test"):
        problems = load_problems(DatasetSpec("gsm8k", str(real_data / "gsm8k"), split)).problems
        assert all(grade(rf"\boxed{{{p.answer}}}", p.answer, "boxed").correct for p in problems)
        assert all(grade(f"{p.worked}\n#### {p.answer}", p.answer, "hash").correct for p in problems)


def test_every_real_math500_gold_is_right_in_its_own_solution(real_data):
    from grpo_math.data import DatasetSpec, load_problems

    problems = load_problems(DatasetSpec("math500", str(real_data / "math500"), "test")).problems
    assert all(grade(rf"\boxed{{{p.answer}}}", p.answer, "boxed").correct for p in problems)
    wrong = [p for p in problems if not grade(p.worked, p.answer, "boxed").correct]
    assert not wrong
