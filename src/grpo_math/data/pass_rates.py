"""The pass rates of training problems, as `grpo-math pass-rate` wrote them: which problems can teach.

A group in which every completion is right, or every one wrong, has no advantage: a problem teaches with a chance of
1 - p^G - (1 - p)^G, for the pass rate p and G completions a group.
"""

from collections.abc import Callable

from grpo_math.data.problems import PassRateSpec, Problem, fingerprint
from grpo_math.errors import UserError, one_line

COLUMNS = ("key", "question", "answer", "samples", "correct", "pass_rate")


def key_of(problem: Problem) -> str:
    """16 hex digits that change with the question or the answer."""
    return fingerprint([problem])


def rate_filter(spec: PassRateSpec | None) -> Callable[[Problem], str | None]:
    """Gives the reason to drop a problem, a pass rate outside the range or none at all, or None."""
    if spec is None:
        return lambda problem: None
    rates = read_rates(spec.file)

    def keep(problem: Problem) -> str | None:
        rate = rates.get(key_of(problem))
        if rate is None:
            return f"without a pass rate in {spec.file}"
        if rate < spec.min:
            return f"with a pass rate below {spec.min:g}"
        return f"with a pass rate above {spec.max:g}" if rate > spec.max else None

    return keep


def read_rates(file: str) -> dict[str, float]:
    import pyarrow
    import pyarrow.parquet

    fix = "make it with grpo-math pass-rate --config R --out FILE"
    with one_line(f"dataset.pass_rate.file: {file}", fix, (OSError, ValueError, pyarrow.ArrowException)):
        table = pyarrow.parquet.read_table(file)
    if missing := {"key", "pass_rate"} - set(table.column_names):
        raise UserError(f"dataset.pass_rate.file: {file} has no column {', '.join(sorted(missing))}: {fix}")
    if not pyarrow.types.is_floating(table["pass_rate"].type):
        raise UserError(f"dataset.pass_rate.file: {file} has no numbers in its column pass_rate: {fix}")
    rates = dict(zip(table["key"].to_pylist(), table["pass_rate"].to_pylist(), strict=True))
    return {key: rate for key, rate in rates.items() if rate is not None and rate == rate}
