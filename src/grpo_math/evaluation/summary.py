"""Graded rows in figures: accuracy and its companions, pass@k and maj@k, with intervals over problems."""

import itertools
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from statistics import fmean

from grpo_math.evaluation.scoring import is_reward
from grpo_math.evaluation.solve import GROUPS
from grpo_math.evaluation.statistics import Figure, amount, pass_at_k, share
from grpo_math.grading import equal_all

TOGETHER = "all datasets"  # the dataset of an evaluation of several, counted together


@dataclass(frozen=True)
class Evaluation:
    """The figures of one dataset. Shares are in [0, 1], `length` is in tokens, `seconds` is the time it took.

    `accuracy` is mean@k where a problem has k samples. `reward` and `rewards/NAME` are means over what the rewards
    could score. `groups` holds, by level or subject, the number of problems and the accuracy.
    """

    dataset: str
    step: int
    problems: int
    samples: int
    seconds: float
    figures: dict[str, Figure]
    groups: dict[str, dict[str, tuple[int, Figure]]] = field(default_factory=dict)

    def flat(self) -> dict:
        """As JSON: every figure with its interval, `accuracy`, `accuracy_low`, `accuracy_high`."""
        row = {key: getattr(self, key) for key in ("dataset", "step", "problems", "samples", "seconds")}
        for name, figure in self.figures.items():
            row |= figure.named(name)
        if self.groups:
            row["groups"] = {
                column: {value: {"problems": count, **asdict(figure)} for value, (count, figure) in values.items()}
                for column, values in self.groups.items()
            }
        return row

    def __str__(self) -> str:
        accuracy = self.figures["accuracy"]
        samples = "" if self.samples == 1 else f", {self.samples} samples each"
        reward = f"reward {self.figures['reward'].value:.3f}, " if "reward" in self.figures else ""
        return (
            f"accuracy {accuracy.value:.3f} (95 % interval {accuracy.low:.3f}-{accuracy.high:.3f}), "
            f"{reward}format {self.figures['format_accuracy'].value:.3f}, "
            f"truncated {self.figures['truncated'].value:.3f}, mean length {self.figures['length'].value:.0f} tokens, "
            f"on {self.problems:,} problems of {self.dataset}{samples}"
        )


def summarise(rows: list[dict], dataset: str, step: int = 0, seconds: float = 0.0) -> Evaluation:
    """The figures of graded rows, with equally many samples per problem; an unreadable gold counts as wrong."""
    by_problem = defaultdict(list)
    for row in rows:
        by_problem[row["dataset"], row["problem"]].append(row)
    questions = [sorted(samples, key=lambda row: row["sample"]) for _, samples in sorted(by_problem.items())]
    samples = len(questions[0])
    right = [sum(row["correct"] is True for row in question) for question in questions]
    columns = {
        "accuracy": [count / samples for count in right],
        "format_accuracy": [fmean(row["well_formed"] for row in question) for question in questions],
        "truncated": [fmean(row["truncated"] for row in question) for question in questions],
    }
    lengths = [fmean(row["length"] for row in question) for question in questions]
    if samples > 1:
        for k in range(1, samples + 1):
            columns[f"pass@{k}"] = [pass_at_k(samples, count, k) for count in right]
        columns[f"maj@{samples}"] = majorities(questions)
    figures = (
        {name: share(values) for name, values in columns.items()} | {"length": amount(lengths)} | rewards_of(questions)
    )
    groups = {column: found for column in GROUPS if (found := by_value(column, questions, columns["accuracy"]))}
    return Evaluation(dataset, step, len(questions), samples, round(seconds, 2), figures, groups)


def rewards_of(questions: list[list[dict]]) -> dict[str, Figure]:
    """The rewards that all rows have, of the questions with a completion that could be scored."""
    names = [name for name in questions[0][0] if is_reward(name)]
    scores = {
        name: [[row[name] for row in question if row[name] is not None] for question in questions]
        for name in names
        if all(name in row for question in questions for row in question)
    }
    return {name: reward_of([known for known in found if known]) for name, found in scores.items() if any(found)}


def reward_of(questions: list[list[float]]) -> Figure:
    """A share where every score is 0 or 1, else an amount."""
    figure = share if {score for known in questions for score in known} <= {0, 1} else amount
    return figure([fmean(known) for known in questions])


def summarise_each(rows: list[dict], seconds: dict[str, float], step: int = 0) -> list[Evaluation]:
    """The figures of the datasets that `seconds` names and, where there are several, of all together."""
    found = [
        summarise([row for row in rows if row["dataset"] == dataset], dataset, step, spent)
        for dataset, spent in seconds.items()
    ]
    return [*found, summarise(rows, TOGETHER, step, sum(seconds.values()))] if len(found) > 1 else found


def by_value(column: str, questions: list[list[dict]], accuracies: list[float]) -> dict[str, tuple[int, Figure]]:
    """The number of questions and their accuracy by the values of a column."""
    found = defaultdict(list)
    for (row, *_), accuracy in zip(questions, accuracies, strict=True):
        if column in row:
            found[str(row[column])].append(accuracy)
    return {value: (len(values), share(values)) for value, values in sorted(found.items())}


def metrics_of(found: list[Evaluation]) -> dict[str, float]:
    """For a metrics log: every figure of the last evaluation, which counts, and the accuracies of those before it."""
    metrics: dict[str, float] = {}
    for name, figure in found[-1].figures.items():
        metrics |= figure.named(name)
    for evaluation in found[:-1]:
        metrics |= evaluation.figures["accuracy"].named(f"{evaluation.dataset.replace(' ', '_')}_accuracy")
    return metrics


def majorities(questions: list[list[dict]]) -> list[float]:
    """Whether the answer that most samples of a question give is right (Wang et al. 2023, arXiv:2203.11171), 1 or 0.

    The grader decides which answers are the same. Completions without an answer have no vote; of equally frequent
    answers the first one given counts.
    """
    votes = []
    for question, same in zip(questions, clusters(questions), strict=True):
        counts = Counter(same[row["sample"]] for row in question if row["answer"] is not None)
        winner = max(counts, key=counts.__getitem__, default=None)  # the first of equals: a Counter keeps the order
        votes.append(float(winner is not None and question[winner]["correct"] is True))
    return votes


def clusters(questions: list[list[dict]]) -> list[dict[int, int]]:
    """For every question, sample -> the first sample with the same answer. Right answers are the same one.

    Round by round the first answer without a cluster is compared with all later ones, in one batch for all questions.
    """
    found, waiting = [], []
    for question in questions:
        right = [row["sample"] for row in question if row["correct"] is True]
        found.append({sample: min(right) for sample in right})
        waiting.append([row for row in question if row["correct"] is not True and row["answer"] is not None])
    while any(waiting):
        pairs = [[(rows[0]["answer"], row["answer"]) for row in rows[1:]] for rows in waiting]
        verdicts = iter(equal_all(list(itertools.chain.from_iterable(pairs))))
        for index, rows in enumerate(waiting):
            if not rows:
                continue
            first, left = rows[0], []
            found[index][first["sample"]] = first["sample"]
            for row in rows[1:]:
                same, _ = next(verdicts)
                if same or row["answer"] == first["answer"]:
                    found[index][row["sample"]] = first["sample"]
                else:
                    left.append(row)
            waiting[index] = left
    return found
