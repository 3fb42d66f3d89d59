"""All checks in one table, and what runs them: the verb `check`, a training before its model loads, a dry run."""

import contextlib
import json
import logging
import os
import sys
import textwrap
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict

from grpo_math.checks import data as audit_data
from grpo_math.checks import grader as audit_grader
from grpo_math.checks import machine as audit_machine
from grpo_math.checks import rewards as audit_rewards
from grpo_math.checks import setup as audit_setup
from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data.problems import ADAPTERS, Problems
from grpo_math.errors import UserError
from grpo_math.grading import configure
from grpo_math.recipe import batch
from grpo_math.recipe.recipe import Recipe, resolve

Check = Callable[[Subject], Iterator[Finding]]
CHECKS: dict[str, tuple[Check, ...]] = {
    "recipe": (audit_setup.keys, audit_setup.values),
    "data": (audit_data.rows,),
    "golds": (audit_data.golds, audit_grader.grader),
    "rewards": (audit_rewards.audit, audit_grader.own_rewards),
    "prompt": (audit_setup.template,),
    "batch": (audit_machine.batch,),
    "memory": (audit_machine.memory_estimate,),
    "launch": (audit_machine.launch,),
    "contamination": (audit_data.contamination,),
}
PATIENCE = 5  # seconds for the Hub to answer
QUICK = (
    audit_setup.values,
    audit_data.golds,
    audit_grader.grader,
    audit_rewards.audit,
    audit_grader.own_rewards,
    audit_setup.template,
)

logger = logging.getLogger(__name__)


def checked(subject: Subject, as_json: bool = False, samples: int = 0) -> bool:
    """Run all checks and print their findings; returns whether there is no error among them."""
    if from_hub(subject.recipe) and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # or every file would be asked for, for minutes
        subject.unreached = from_hub(subject.recipe)
    configure(subject.recipe.grading)
    checks = dict(CHECKS)
    if samples:
        from grpo_math.checks.sample import sample

        checks["sample"] = (lambda subject: sample(subject, samples),)
    return report_json(subject, checks) if as_json else report(subject, checks)


def from_hub(recipe: Recipe) -> list[str]:
    """What is no local file or folder."""
    name = recipe.model.get("model_name_or_path")
    found = [name] if name and not os.path.isdir(name) else []
    for spec in [*recipe.datasets, *recipe.eval_datasets]:
        adapter = ADAPTERS.get(spec.name)
        path = spec.path or (adapter and adapter.hub)
        if adapter and path and not adapter.generate and not os.path.exists(os.path.expanduser(path)):
            found.append(path)
    return list(dict.fromkeys(found))


def hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return True  # nobody will ask it
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run_checks(subject: Subject, checks: dict[str, tuple[Check, ...]]) -> Iterator[tuple[int, str, Finding]]:
    """Number, name and finding, as they are made. What several checks stumble over is said once."""
    said: set[str] = set()
    shown: set[tuple[int, str]] = set()
    for number, (name, parts) in enumerate(checks.items(), 1):
        for check in parts:
            for finding in findings_of(check, subject):
                if finding.level == "error" and finding.says in said:
                    finding = note("not checked: see the error above")
                if (number, finding.says) not in shown:
                    yield number, name, finding
                said.add(finding.says)
                shown.add((number, finding.says))


def findings_of(check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        yield from check(subject)
    except UserError as mistake:
        yield from map(error, str(mistake).splitlines())
    except Exception as mistake:
        if subject.mistakes:  # whatever a half-understood recipe leads to
            yield note("not checked: mend the recipe first")
        else:  # a mistake of ours, which shall stop nobody
            yield warning(f"a check itself failed, {type(mistake).__name__}: {mistake}", "please report it")


def report(subject: Subject, checks: dict[str, tuple[Check, ...]]) -> bool:
    """Print the findings as they come; returns whether there is no error among them."""
    print(f"{subject.recipe.source}, layout {subject.layout}, {batch.count(subject.processes, 'process')}")
    names, begun, count = list(checks), 0, Counter()
    for number, _, finding in run_checks(subject, checks):
        for new in range(begun, number):
            print(f"{new + 1}. {names[new]}" + ("" if new + 1 == number else ": ok"), flush=True)
        begun = number
        count[finding.level] += 1
        label = "" if finding.level == "note" else f"{finding.level}: "
        print(textwrap.indent(f"{label}{finding.says}", "   "))
        if finding.fix:
            print(f"     fix: {finding.fix}")
    found = ", ".join(f"{count[level] or 'no'} {level}{'s' * (count[level] != 1)}" for level in ("error", "warning"))
    print(f"{subject.recipe.source}: {found}")
    return not count["error"]


def report_json(subject: Subject, checks: dict[str, tuple[Check, ...]]) -> bool:
    with contextlib.redirect_stdout(sys.stderr):  # what people's own functions print
        found = [{"number": n, "check": name} | asdict(finding) for n, name, finding in run_checks(subject, checks)]
    ok = not any(one["level"] == "error" for one in found)
    print(json.dumps({"ok": ok, "findings": found}, indent=2))
    return ok


def check_training(recipe: Recipe, tokenizer, parts: list[Problems]) -> None:
    """The quick checks, by a training that has its problems and loads its model next. Raises UserError with every
    error; says the warnings."""
    if not recipe.preflight:
        return
    subject = Subject(recipe)
    subject.tokenizer, subject.parts = tokenizer, parts
    found = [finding for _, _, finding in run_checks(subject, {"": QUICK})]
    if errors := [str(finding) for finding in found if finding.level == "error"]:
        logger.info("the checks found errors, no model is loaded (--no_preflight goes on all the same)")
        raise UserError("\n".join(errors))
    for finding in found:
        if finding.level == "warning":
            logger.info("warning: %s", finding)


def dry_run(argv: list[str]) -> bool:
    """Whether a training is only to be checked; if so, that is done."""
    flags = {"--dry_run", "--dry-run"}
    if not flags & set(argv):
        return False
    if batch.is_main_process():
        recipe, mistakes = resolve([word for word in argv if word not in flags])
        if not checked(Subject(recipe, mistakes)):
            sys.exit(1)
    return True
