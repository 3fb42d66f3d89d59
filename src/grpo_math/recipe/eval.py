"""The part of a recipe that says what is evaluated, how and when, checked like the others (recipe_parts.py)."""

from dataclasses import dataclass
from pathlib import Path

from grpo_math.data.problem import DatasetSpec
from grpo_math.recipe.parts import at_least_one, check_dataset, fields_of
from grpo_math.recipe.schema import check_keys


@dataclass(frozen=True)
class EvalSpec:
    """The `eval:` part: which held-out problems, how they are sampled, and when.

    The problems are all those of the training dataset at `split`, unless `datasets` names others. `samples` completions
    each, at `temperature` (0: greedy) and `top_p`, as long as the training's (512 tokens in SFT) unless
    `max_completion_length` says otherwise. `k` are the k of pass@k that are shown. `best` keeps the model with the
    highest lower end of accuracy's interval.
    """

    before_after: bool = False
    every: int | None = None
    best: bool = False
    datasets: list | dict | str | None = None
    split: str = "test"
    max_samples: int | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    k: list[int] | None = None
    batch_size: int = 32
    max_completion_length: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether the training evaluates at all."""
        return self.before_after or self.every is not None


RENAMED_IN_EVAL = {
    "every_steps": "eval.every",
    "eval_steps": "eval.every",
    "dataset": "eval.datasets",
    "n": "eval.samples",
    "max_tokens": "eval.max_completion_length",
    "max_new_tokens": "eval.max_completion_length",
}


def check_eval(
    raw: dict, datasets: list[DatasetSpec], trains: bool, problems: list[str]
) -> tuple[EvalSpec, list[DatasetSpec]]:
    """The `eval:` part and its datasets. Where nothing `trains`, the training problems are as good as any others."""
    given = raw.get("eval") or {}
    if not isinstance(given, dict):
        problems.append(f"eval: want a mapping such as {{before_after: true}}, got {given!r}")
        return EvalSpec(), []
    checked = check_keys(given, fields_of(EvalSpec), "eval.", problems, RENAMED_IN_EVAL)
    at_least_one(checked, "eval.", problems)
    spec = EvalSpec(**checked)
    wanted = trains and spec.wanted
    check_sampling(spec, problems)
    if spec.best and not spec.wanted:
        problems.append("eval.best: there is no evaluation to choose by: add every: 20")
    asked = {"split": spec.split, "max_samples": spec.max_samples}
    if spec.datasets:
        found = held_out(spec.datasets, asked, problems)
        if trains and any(same_rows(one, trained) for one in found for trained in datasets):
            problems.append("eval.datasets: these are the training problems: name others, or another split")
        return spec, found
    if len(datasets) != 1:
        if wanted and datasets:
            problems.append("eval.datasets: missing: with several training datasets, name those to evaluate on")
        return spec, []
    trained = datasets[0]
    if trained.name and trained.path and Path(trained.path).is_file():
        if wanted:
            problems.append(
                f"eval.datasets: missing: {trained.path} is one file, and the training itself reads it: name another, "
                f"eval: {{datasets: {{name: {trained.name}, path: FILE}}}}"
            )
        return spec, []
    if wanted and spec.split == trained.split:
        problems.append(f"eval.split: {spec.split} is what the training reads: name another split")
    held_out_split = DatasetSpec.model_construct(
        name=trained.name,
        path=trained.path,
        config=trained.config,
        params=trained.params,
        where="eval.datasets.",
        **asked,
    )
    return spec, [held_out_split]


def held_out(given, asked: dict, problems: list[str]) -> list[DatasetSpec]:
    """`eval.datasets`: one dataset or a list, each a name (`gsm8k`) or a mapping as in `dataset:`."""
    many = given if isinstance(given, list) else [given]
    found = []
    for index, entry in enumerate(many):
        where = "eval.datasets" + (f"[{index}]." if isinstance(given, list) else ".")
        entry = {"name": entry} if isinstance(entry, str) else entry
        if isinstance(entry, dict):
            entry = asked | {key: value for key, value in entry.items() if value is not None}
        found += check_dataset(entry, where, problems)
    return found


def check_sampling(spec: EvalSpec, problems: list[str]) -> None:
    if spec.temperature < 0:
        problems.append(f"eval.temperature: want 0 (greedy) or more, got {spec.temperature:g}")
    if not 0 < spec.top_p <= 1:
        problems.append(f"eval.top_p: want a number above 0 to 1, got {spec.top_p:g}")
    if spec.samples > 1 and spec.temperature == 0:
        problems.append(
            f"eval.samples: {spec.samples} greedy completions of a problem are one and the same: set temperature: 0.7, "
            "or samples: 1"
        )
    for k in spec.k or []:
        if not 1 <= k <= spec.samples:
            problems.append(f"eval.k: pass@{k} wants {k} samples or more, and there are {spec.samples}: raise samples")


def same_rows(one: DatasetSpec, other: DatasetSpec) -> bool:
    return (one.name, one.path, one.split, one.config) == (other.name, other.path, other.split, other.config) or (
        one.path is not None and one.path == other.path and Path(one.path).is_file()
    )
