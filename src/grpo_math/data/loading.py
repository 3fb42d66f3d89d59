"""Loading: the problems of the datasets that a recipe names, filtered, counted and mixed."""

import contextlib
import dataclasses
import itertools
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.data.adapters import ADAPTERS, EVALUATION, OWN
from grpo_math.data.filters import (
    Filter,
    Overlap,
    first_reasons,
    outside_pass_rates,
    read_pass_rates,
    require_advantages,
    too_long,
)
from grpo_math.data.problem import DatasetSpec, Problem, Problems, Unusable, titles
from grpo_math.data.prompts import PromptTemplate
from grpo_math.data.sources import function_rows, hub_rows, in_hub_cache, local_files, looks_local, rows_of_file
from grpo_math.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("grpo_math.train")


def load_parts(
    specs: list[DatasetSpec],
    template: PromptTemplate,
    tokenizer: "PreTrainedTokenizerBase | None",
    tests: Sequence[DatasetSpec] = (),
    keep_too: Callable[[Problem], str | None] | None = None,
    num_generations: int | None = None,
) -> list[Problems]:
    """The training problems, dataset by dataset, filtered as their specs tell.

    `tests` are the evaluation's datasets, for `decontaminate`. `keep_too` gives a reason to drop a problem, or None.
    `num_generations` is the group size, for `pass_rate: {require: ...}` (None: SFT, which has no groups). The tokenizer
    is needed where a spec has `max_prompt_tokens`.
    """
    parts = []
    overlaps: dict[str, Overlap] = {}  # the test sets are read once for all datasets that name the same
    for spec, title in zip(specs, titles(specs), strict=True):
        filters: list[Filter] = []
        rates = read_pass_rates(spec.pass_rate.file, spec.where) if spec.pass_rate else {}
        if spec.pass_rate:
            filters.append(outside_pass_rates(spec.pass_rate, rates))
        if spec.decontaminate:
            if (against := str(spec.decontaminate)) not in overlaps:
                overlaps[against] = overlap_with_tests(spec, specs, tests)
            filters.append(overlaps[against])
        if tokenizer is not None and spec.max_prompt_tokens is not None:
            filters.append(too_long(template, tokenizer, spec.max_prompt_tokens))
        if keep_too:
            filters.append(lambda problems: [keep_too(problem) for problem in problems])
        loaded = load_problems(spec, *filters)
        problems = shuffle_answers(loaded.problems) if spec.shuffle_answers else loaded.problems
        parts.append(dataclasses.replace(loaded, title=title, problems=problems))
        logger.info("training on %s", parts[-1])
        if spec.pass_rate and spec.pass_rate.require:
            require_advantages(parts[-1].problems, spec.pass_rate, rates, num_generations, spec.where)
    return parts


def shuffle_answers(problems: list[Problem]) -> list[Problem]:
    """The same questions in the same order, each with the answer and the worked solution of another problem."""
    order = random.Random(0).sample(range(len(problems)), len(problems))
    found = list(problems)
    for place, other in zip(order, [*order[1:], order[0]], strict=True):
        given = problems[other]
        found[place] = dataclasses.replace(problems[place], answer=given.answer, worked=given.worked)
    return found


def mix_parts(parts: list[Problems], specs: list[DatasetSpec], seed: int) -> list[Problem]:
    """Join the problems. With weights, each part gets its share of the largest mixture that repeats no problem."""
    if all(spec.weight is None for spec in specs):
        return [problem for part in parts for problem in part.problems]
    weights = [spec.weight or 0.0 for spec in specs]
    if min(weights) <= 0:
        raise UserError(f"dataset weights {weights}: set a weight above 0 for every dataset of the list, or for none")
    total = sum(weights)
    size = min(len(part.problems) * total / weight for part, weight in zip(parts, weights, strict=True))
    rng = random.Random(seed)
    return [
        problem
        for part, weight in zip(parts, weights, strict=True)
        for problem in rng.sample(part.problems, max(1, int(size * weight / total + 1e-9)))
    ]


def overlap_with_tests(spec: DatasetSpec, specs: list[DatasetSpec], tests: Sequence[DatasetSpec]) -> Overlap:
    """The filter of `decontaminate`: true for all test sets there are, a list for those that it names."""
    where, named = f"{spec.where}decontaminate", spec.decontaminate
    found, missing = test_sets(specs, tests, named if isinstance(named, list) else None)
    if missing and isinstance(named, list):
        raise UserError(
            f"{where}: {', '.join(missing)}: neither on this machine nor readable from the Hub: leave it out, or "
            f"name its folder, eval: {{datasets: [{{name: {missing[0]}, path: FOLDER}}]}}"
        )
    if not found:
        raise UserError(f"{where}: no test set to compare with: name one, eval: {{datasets: ...}}")
    logger.info("%s: compared with %s", where, ", ".join(test.title for test in found))
    return Overlap([problem for test in found for problem in test.problems])


def test_sets(
    specs: list[DatasetSpec], tests: Sequence[DatasetSpec], named: list[str] | None
) -> tuple[list[Problems], list[str]]:
    """The evaluation's test sets, whole, and those of the evaluation sets that are `named`; None: of all that are on
    this machine, in the folder of the training problems or in the Hub's cache. Also the names of those that are not."""
    found = [load_problems(spec.model_copy(update={"max_samples": None})) for spec in tests]
    missing = []
    for name in EVALUATION if named is None else named:
        if name in {spec.name for spec in tests}:
            continue
        spec = in_training_folder(name, specs) or DatasetSpec(name=name, split=ADAPTERS[name].test)
        loaded = None
        if named or spec.path or in_hub_cache("dataset", ADAPTERS[name].hub or ""):
            with contextlib.suppress(UserError):  # the cache may have another split alone
                loaded = load_problems(spec)
        found += [loaded] if loaded else []
        missing += [] if loaded else [name]
    return found, missing


def in_training_folder(name: str, specs: list[DatasetSpec]) -> DatasetSpec | None:
    """The test split of an evaluation set in the folder of training problems of that name."""
    adapter = ADAPTERS[name]
    for spec in specs:
        folder = Path(os.path.expanduser(spec.path or ""))
        if spec.name == name and spec.path and folder.is_dir():
            with contextlib.suppress(UserError):  # it has no such split
                local_files(folder, adapter.test, spec.subset, adapter.configs)
                return DatasetSpec(name=name, path=spec.path, split=adapter.test, config=spec.config)
    return None


def load_problems(spec: DatasetSpec, *filters: Filter) -> Problems:
    """The problems of one dataset, shuffled by `shuffle_seed`, at most `max_samples`.

    The filters see all problems at once, or as many as are still wanted. Raises UserError when the source is missing,
    malformed or leaves no problem.
    """
    parsed = parsed_rows(spec)
    kept: list[tuple[int, Problem]] = []
    read, dropped = 0, Counter[str]()
    while batch := list(itertools.islice(parsed, spec.max_samples and spec.max_samples - len(kept))):
        read += len(batch)
        usable = [(place, found) for place, found in batch if isinstance(found, Problem)]
        reasons = first_reasons([problem for _, problem in usable], filters)
        kept += [one for one, reason in zip(usable, reasons, strict=True) if not reason]
        dropped.update(found for _, found in batch if isinstance(found, str))
        dropped.update(filter(None, reasons))
    loaded = Problems(spec.title, [problem for _, problem in kept], [place for place, _ in kept], read, dropped)
    if not kept:
        raise UserError(f"{spec.where[:-1]}: {loaded}: no problems are left")
    return loaded


def parsed_rows(spec: DatasetSpec) -> Iterator[tuple[int, Problem | str]]:
    """The number of each row, and its problem or the reason why there is none.

    What raises UserError in here begins its message with a key of the dataset; the key's place is added here.
    """
    adapter, seed = ADAPTERS[spec.name] if spec.name else OWN, spec.shuffle_seed
    params = adapter.params | spec.params
    if seed is None and spec.max_samples and len(adapter.configs) > 1:
        seed = 0  # MATH comes sorted by subject: the first rows are all algebra
    try:
        rows: Iterable[tuple[int, Any]] = enumerate(raw_rows(spec), 1)
        if seed is not None:
            rows = list(rows)
            random.Random(seed).shuffle(rows)
        for place, row in rows:
            try:
                problem = adapter.parse(row, **params)
                "".join((problem.question, problem.answer, problem.worked or "", problem.system or "")).encode()
                yield place, problem if problem.question else "without a question"
            except Unusable as reason:
                yield place, str(reason)
            except (AttributeError, TypeError, ValueError, RecursionError):  # such as half a surrogate pair
                yield place, "with a malformed cell"
            except KeyError as error:
                raise UserError(
                    f"name: row {place} of {spec.title} is not a row of {spec.name} (no column {error}; its columns "
                    f"are {', '.join(map(str, row))}): use name: json with fields"
                ) from error
    except UserError as error:
        raise UserError(f"{spec.where}{error}") from error


def raw_rows(spec: DatasetSpec) -> Iterable:
    """The raw rows of a dataset: from a function by path, reasoning-gym, a local file or folder, or the Hub."""
    if spec.name is None:
        return function_rows(spec.path or "", spec.split, spec.params)
    adapter = ADAPTERS[spec.name]
    if adapter.generate:
        return adapter.generate(spec.split, spec.config, **spec.params)
    path, asked = spec.path or adapter.hub, (spec.params.get("fields") or {}).values()
    skip = {*adapter.skip} - {str(column).partition(".")[0] for column in asked}
    if path is None:
        raise UserError(f"path: missing, {spec.name} needs a FILE, a FOLDER or a HUB_ID")
    if (local := Path(os.path.expanduser(path))).exists():
        files = local_files(local, spec.split, spec.subset, adapter.configs)
        return (row for file in files for row in rows_of_file(file, skip))
    if ".py:" in path:
        raise UserError(f"path: {path} is a function, but {spec.name} reads files: set name: null")
    if looks_local(path):
        raise UserError(f"path: no file or folder {path}")
    return hub_rows(path, (spec.subset,) if spec.subset else adapter.configs, spec.split, skip)
