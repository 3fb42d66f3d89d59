"""The table of checks, and how they are run: by the verb `check` and by a training."""

import contextlib
import json
import logging
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from grpo_math.checks import data, grader, machine, rewards, setup
from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data import Problems
from grpo_math.errors import WORKS_HERE, UserError
from grpo_math.evaluation import Benchmark
from grpo_math.grading import configure
from grpo_math.models.weights import unsharded
from grpo_math.recipe import batch
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs.folder import quiet_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Check = Callable[[Subject], Iterator[Finding]]
CHECKS: dict[str, tuple[Check, ...]] = {
    "recipe": (setup.keys, setup.values),
    "data": (data.rows, data.power, data.reachable),
    "golds": (data.golds, grader.grader),
    "rewards": (rewards.audit, grader.own_rewards, rewards.held_out),
    "prompt": (setup.template,),
    "model": (setup.weights,),
    "batch": (machine.batch,),
    "memory": (machine.memory_estimate,),
    "launch": (machine.launch, machine.disk),
    "contamination": (data.contamination,),
}
QUICK = {"recipe": (setup.values,), "data": (data.reachable,)} | {
    name: CHECKS[name] for name in ("golds", "rewards", "prompt")
}

logger = logging.getLogger(__name__)


def run_checks(subject: Subject, checks: dict[str, tuple[Check, ...]] = CHECKS) -> Iterator[tuple[str, list[Finding]]]:
    """The findings of each check. An error that stops several checks is reported by the first of them."""
    configure(subject.recipe.grading)
    seen: set[str] = set()
    for name, parts in checks.items():
        found: list[Finding] = []
        for finding in (finding for check in parts for finding in findings_of(check, subject)):
            repeated = finding.level == "error" and finding.says in seen
            finding = replace(note("not checked: see the error above") if repeated else finding, check=name)
            seen.add(finding.says)
            if finding not in found:
                found.append(finding)
        yield name, found


def findings_of(check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        yield from check(subject)
    except UserError as mistake:
        for line in str(mistake).splitlines():
            yield note(line) if line == WORKS_HERE else error(line)
    except Exception as mistake:
        if subject.mistakes:  # an incomplete recipe may lead to anything
            yield note("not checked: fix the recipe first")
        else:  # a bug of the check must not stop a run
            yield warning(f"a check itself failed, {type(mistake).__name__}: {mistake}", "please report it")


def report(subject: Subject, as_json: bool = False, strict: bool = False) -> bool:
    """Run all checks and print their findings; returns whether there is no error, nor a warning where `strict`."""
    quiet_progress_bars()
    checks = dict(CHECKS)
    if subject.samples:
        from grpo_math.checks.sample import sample

        checks["sample"] = (sample,)
    bad = {"error", "warning"} if strict else {"error"}
    return (report_json if as_json else report_text)(subject, checks, bad)


def report_text(subject: Subject, checks: dict[str, tuple[Check, ...]], bad: set[str]) -> bool:
    print(f"{subject.recipe.source}, layout {subject.layout}, {batch.count(subject.processes, 'process')}")
    count: Counter[str] = Counter()
    for number, (name, found) in enumerate(run_checks(subject, checks), 1):
        print(f"{number}. {name}" + ("" if found else ": ok"), flush=True)
        for finding in found:
            count[finding.level] += 1
            label = "" if finding.level == "note" else f"{finding.level}: "
            print(textwrap.indent(label + finding.says, "   "))
            if finding.fix:
                print(f"     fix: {finding.fix}")
    counts = [f"{count[level] or 'no'} {level}{'s' * (count[level] != 1)}" for level in ("error", "warning")]
    print(f"{subject.recipe.source}: {', '.join(counts)}")
    return bad.isdisjoint(count)


def report_json(subject: Subject, checks: dict[str, tuple[Check, ...]], bad: set[str]) -> bool:
    with contextlib.redirect_stdout(sys.stderr):  # a user's own functions may print
        found = [
            {"number": number, **asdict(finding)}
            for number, (_, findings) in enumerate(run_checks(subject, checks), 1)
            for finding in findings
        ]
    ok = bad.isdisjoint(one["level"] for one in found)
    print(json.dumps({"ok": ok, "findings": found}, indent=2))
    return ok


def check_training(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    parts: list[Problems],
    benchmarks: list[Benchmark],
    plugin: Any = None,
) -> None:
    """The quick checks of a training, before it loads its model. Raises UserError with every error, and logs the
    warnings. The first process checks, which may call paid judges, and the others learn what it found. `plugin` is
    the training's DeepSpeed plugin."""
    from accelerate.utils import broadcast_object_list

    if not recipe.preflight:
        return
    subject = Subject(recipe)
    subject.tokenizer, subject.parts, subject.benchmarks = tokenizer, parts, benchmarks
    found: list[Finding] = []
    if batch.is_main_process():
        with unsharded(plugin):
            found = [finding for _, findings in run_checks(subject, QUICK) for finding in findings]
    found = broadcast_object_list([found])[0]
    if errors := [str(finding) for finding in found if finding.level == "error"]:
        logger.info("the checks found errors, no model is loaded (--no_preflight skips the checks)")
        raise UserError("\n".join(errors))
    for finding in found:
        if finding.level == "warning":
            logger.info("warning: %s", finding)
