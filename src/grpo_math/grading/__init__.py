r"""From a completion to a verdict: find the answer, compare it with the gold, keep the evidence.

>>> from grpo_math.grading import grade
>>> grade(r"12 of 16 are left, so \boxed{\frac{12}{16}}", gold="0.75", style="boxed")
Grade(answer='\\frac{12}{16}', correct=True, how='number')

Completions, golds and styles go in. A `Grade` per completion comes out. This room imports only `grpo_math.errors`, and
neither torch nor trl nor transformers; only its worker processes import math_verify.
"""

from grpo_math.grading.batch import Grade, accepted, equal_all, grade, grade_batch
from grpo_math.grading.extraction import STYLES, boxes, extract, last_boxed, well_formed, without_boxes
from grpo_math.grading.pool import PoolSettings, configure

__all__ = [
    "STYLES",
    "Grade",
    "PoolSettings",
    "accepted",
    "boxes",
    "configure",
    "equal_all",
    "extract",
    "grade",
    "grade_batch",
    "last_boxed",
    "well_formed",
    "without_boxes",
]
