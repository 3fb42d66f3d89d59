"""Where the answer of a completion stands."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.grading import STYLES, extract, grade, last_boxed, well_formed


@pytest.mark.parametrize(
    ("text", "style", "answer"),
    [
        (r"so \boxed{72}.", "boxed", "72"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", "boxed", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{3}", "boxed", "3"),
        (r"\boxed {4}", "boxed", "4"),
        (r"\boxed 9.", "boxed", "9"),
        (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "boxed", "5"),
        (r"\boxed{4 \boxed{5}}", "boxed", r"4 \boxed{5}"),
        (r"I use \boxed notation: \boxed{7}", "boxed", "7"),
        (r"\boxed{a\\}", "boxed", r"a\\"),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", "boxed", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        ("\\boxed{\n7\n}", "boxed", "7"),
        (r"} unbalanced { before \boxed{8}", "boxed", "8"),
        (r"\boxed{1} then \boxed{2", "boxed", None),
        (r"\boxed{1 \boxed{2}", "boxed", None),
        (r"\boxed{}", "boxed", None),
        (r"\boxed{ }", "boxed", None),
        (r"\boxed", "boxed", None),
        ("72", "boxed", None),
        ("", "boxed", None),
        # several answers are the list of them
        (r"\boxed{1} no, \boxed{2}", "boxed", "1, 2"),
        (r"\boxed{2}, that is \boxed{2}", "boxed", "2"),
        (r"\boxed{} \boxed{2}", "boxed", "2"),
        ("#### 10\n#### 12 \nmore", "hash", "10, 12"),
        ("<answer>1</answer> <answer> 2 </answer>", "answer_tag", "1, 2"),
        # thinking does not count
        (r"<think>maybe \boxed{3}</think> \boxed{4}", "boxed", "4"),
        (r"<think>\boxed{3}</think> nothing", "boxed", None),
        (r"<think>\boxed{3}", "boxed", None),
        ("5*2=10\n#### 10", "hash", "10"),
        ("so #### 1,234 \n", "hash", "1,234"),
        ("#### ", "hash", None),
        ("10", "hash", None),
        ("<think>t</think> <answer>7</answer>", "answer_tag", "7"),
        (r"<answer>It is \boxed{3}</answer>", "answer_tag", "3"),
        ("<answer>wait <answer>7</answer>", "answer_tag", "7"),
        ("<answer>\n7\n</answer>", "answer_tag", "7"),
        ("<answer></answer>", "answer_tag", None),
        ("<answer>7", "answer_tag", None),
        ("7</answer>", "answer_tag", None),
        (r"1 #### 2 \boxed{3}", "fallback", "3"),
        ("1 #### 2", "fallback", "2"),
        ("The answer is 72 clips. Good.", "fallback", "72 clips"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", "fallback", r"$\frac{1}{2}$"),
        ("The answer is 3. No, the answer is 4.", "fallback", "4"),
        ("Answer: 12", "fallback", "12"),
        ("She has 1,234 left", "fallback", "1,234"),
        ("first 3, then -4.5 dollars", "fallback", "-4.5"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "fallback", "The final answer is $5$"),
        ("The answer is **5**.", "fallback", "5"),
        ("so x is \N{MINUS SIGN}5", "fallback", "-5"),
        ("total 5-3", "fallback", "3"),
        ("It costs $18.", "fallback", "$18"),
        ("three quarters, 3/4 of it", "fallback", "3/4"),
        ("no number", "fallback", None),
        ("The answer is:\n\n$$\n18\n$$\n\nI hope it is correct.", "fallback", "$$ 18 $$"),
        ("Final answer:\n\\[\n\\frac{1}{2}\n\\]", "fallback", "\\[ \\frac{1}{2} \\]"),
        ("The answer is $7$\n$$a=8$$", "fallback", "$7$"),
        ("So\n\\[\n2x &= 34 \\\\\nx &= 17\n\\]", "fallback", "17"),
        ("所以一共需要2.5小时。", "fallback", "2.5"),
        ("一共42个。见第3题。", "fallback", "42"),
        # the last expression, not the last digits
        (r"The result is $\frac{1}{2}$.", "fallback", r"\frac{1}{2}"),
        (r"so we get $2\sqrt{3}$", "fallback", r"2\sqrt{3}"),
        (r"The point is $(3,4)$.", "fallback", "(3,4)"),
        (r"We get \(x = 7\).", "fallback", "x = 7"),
        ("She has $5 and pays $42.", "fallback", "$42"),
        ("It costs $5, so he pays $6 in all", "fallback", "$6"),
        ("1 1/2 cups", "fallback", "1 1/2"),
        ("The correct option is C.", "fallback", "C"),
        ("so it must be\n**C**", "fallback", "C"),
        ("A, B, C, D", "fallback", None),
        ("The answer is 42, since 40+2=42.", "fallback", "42"),
        ("the answer is 10 because 5*2 = 10", "fallback", "10"),
        ("The answer is 42 (forty-two).", "fallback", "42"),
        ("\u6240\u4ee5\u7b54\u6848\u662f42\u3002", "fallback", "42"),
        ("In step 42, we stop.", "fallback", None),
        # what takes the answer back belongs to it
        ("The answer isn't 42.", "fallback", "isn't 42"),
        ("The answer is 5, which is wrong. It is 6.", "fallback", "5, which is wrong"),
        ("The answer is 5 because of rounding, or 6.", "fallback", "5 because of rounding, or 6"),
        # a box without content is none, as one that the question asked to fill
        (r"3\boxed{\phantom{2}}5 is divisible by 3 with \boxed{1}", "boxed", "1"),
        (r"\boxed{{,}}, \boxed{?} and \boxed{\land\lor}", "boxed", None),
        (r"\boxed{\begin{pmatrix}\\\end{pmatrix}}", "boxed", None),
        ("#### {,}", "hash", None),
        ("<answer>{;}</answer>", "answer_tag", None),
        # thinking that never ends
        (r"<think>a</think><think>\boxed{42}", "boxed", None),
        ("<think>so <answer>42</answer>", "answer_tag", None),
        ("<think>The answer is 42.", "fallback", None),
        ("#### Step 1: add\n40+2=42\n#### Step 2: done\n#### 42", "hash", "42"),
    ],
)
def test_extract(text, style, answer):
    assert extract(text, style) == answer


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        (r"\boxed{3} or \boxed{4}", "4", False),
        (r"\boxed{3} or \boxed{4}", "3,4", True),
        (r"\boxed{0.5}, so \boxed{\frac12}", "1/2", True),
        (r"\boxed{(2,3)} and \boxed{(2, 3)}", "(2,3)", True),
        (r"\boxed{1,234} and \boxed{1234}", "1234", True),
        (r"\boxed{1, 2} and \boxed{2, 1}", "1,2", True),
        (r"\boxed{\text{Yes}} and \boxed{yes}", r"\text{Yes}", True),
        (r"\boxed{4 \boxed{5}}", "5", False),
        (r"\boxed{-2} and \boxed{1}, so \boxed{-2, 1}", "1,-2", True),
        (r"\boxed{4}, or \boxed{3, 4}", "4", False),
        (r"#### $\boxed{5}$", "5", True),
        ("#### 3\n#### 4", "4", False),
        (r"\boxed{1}, \boxed{2}, so \boxed{\{1,2\}}", r"\{1,2\}", True),
        (r"\boxed{x=\boxed{42}}", "42", True),
        (r"\boxed{(-\infty,2)}, \boxed{(3,\infty)}", r"(-\infty,2)\cup(3,\infty)", True),
        (r"\boxed{(-\infty,2)}, \boxed{(3,\infty)} or \boxed{(5,\infty)}", r"(-\infty,2)\cup(3,\infty)", False),
        (r"\boxed{x>5} or rather \boxed{y>2}", "x>2", False),
        (" ".join(rf"\boxed{{{n}}}" for n in range(9)), "8", False),
        (r"\boxed{0.5}", '["half", "1/2"]', True),  # of a JSON list of texts each is right
        (r"\boxed{half} or \boxed{1/2}", '["half", "1/2"]', False),
        (r"\boxed{1/2} or \boxed{0.5}", '["half", "1/2"]', True),
        (r'\boxed{["half", "1/2"]}', '["half", "1/2"]', False),
        (r"\boxed{1}", '["half", "1/2"]', False),
        ("nothing", '["half", "1/2"]', False),
        (r"\boxed{2}", '["", "1/2"]', False),  # what can be read decides
        (r"\boxed{2}", '["", "{,}"]', None),
        (r"\boxed{1, 2}", "[1, 2]", False),
        (r'\boxed{["a"}', '["a"', True),
    ],
)
def test_hedging_with_several_answers_does_not_pay(completion, gold, correct):
    assert grade(completion, gold, "hash" if "####" in completion else "boxed").correct is correct


def test_the_gold_of_a_worked_solution_is_its_last_box():
    assert last_boxed(r"first \boxed{1}, then \boxed{2}") == "2"
    assert last_boxed("none") is None


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
        ("it is 4", "fallback", True),
        ("it is four", "fallback", False),
    ],
)
def test_well_formed(text, style, good):
    assert well_formed(text, style) is good


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "piece",
    [
        r"\boxed{",
        r"\boxed ",
        "{",
        "}",
        "#### ",
        "####\n",
        "<answer>",
        "<think>",
        "</answer>",
        "a\n",
        "answer is ",
        "answer is          ",
        " ",
        "\n",
        "1,",
    ],
)
def test_a_megabyte_of_anything_takes_no_time(style, piece):
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    well_formed(text, style)
    well_formed("<think>" + text + "</think><answer>1</answer>", style)
    assert time.process_time() - start < 5  # quadratic would be hours


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("The answer is 5" + " " * 400_000 + "x", "fallback"),
        ("$" + "1" * 400 + "$" * 400_000, "fallback"),
        (r"\(" * 500_000, "fallback"),
        ("#### 1\n" * 20_000 + " " * 20_000 + "x", "hash"),
        (r"\boxed{f" + "_{_}" * 900 + "=5}", "boxed"),
        (r"\boxed{}\hat" + " " * 1_300 + r"\hat" + " " * 2_600 + "5}", "boxed"),
        ("".join(rf"\boxed{{1 b{n}}}" for n in range(4_000)) + r"\boxed{" + "2," * 450 + "1}", "boxed"),
    ],
    ids=range(7),
)
def test_completions_that_patterns_would_choke_on_take_no_time(text, style):
    start = time.process_time()
    well_formed(text, style)
    assert grade(text, "7", style).correct is False
    assert time.process_time() - start < 5  # some were exponential


@given(st.text() | st.text(alphabet="\\boxed{} #<answer>/\n1"), st.sampled_from(sorted(STYLES)))
def test_extracting_never_raises_and_never_gives_an_empty_answer(text, style):
    assert extract(text, style) != ""
