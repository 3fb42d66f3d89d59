"""How good a model is on held-out problems, and whether one model is better than another.

Enters: benchmarks, an engine, a prompt template; for the commands a recipe. Leaves: graded rows, `Evaluation`s whose
figures have 95 % intervals, `Comparison`s. Imports everything up to generation; the watcher starts further processes.
"""

from grpo_math.evaluation.scoring import Scoring, score_together
from grpo_math.evaluation.solve import Benchmark, Setup, grade_rows, load_benchmarks, setup_of, solve, solve_together
from grpo_math.evaluation.statistics import Difference, Figure
from grpo_math.evaluation.summary import Evaluation, metrics_of, summarise_each

__all__ = [
    "Benchmark", "Difference", "Evaluation", "Figure", "Scoring", "Setup", "grade_rows", "load_benchmarks",
    "metrics_of", "score_together", "setup_of", "solve", "solve_together", "summarise_each",
]  # fmt: skip
