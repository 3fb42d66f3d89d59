"""Raw rows: from local files, from the Hub, or from a function.

JSON and CSV are read by the standard library: `datasets` would guess a type for each column, and change golds ("007" in
a CSV file becomes 7, the text "2020-01-01" a date, an integer in a column with fractions a float).
"""

import csv
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from grpo_math.data.functions import load_function
from grpo_math.errors import UserError, raised, reason_of

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")


def rows_of_file(path: Path) -> Iterable[dict]:
    """The rows of one file, by its ending; raises UserError for what cannot be read as rows."""
    try:
        for number, row in enumerate(entries(path), 1):
            if not isinstance(row, dict):
                raise UserError(f"path: {path}, row {number}: want an object with named columns, got {row!r:.60}")
            if None in row:  # the csv module's key for them
                raise UserError(f"path: {path}, row {number}: more cells than columns: quote cells with commas")
            yield row
    except (OSError, ValueError) as error:
        raise UserError(f"path: {path}: cannot be read as {path.suffix[1:]} ({error})") from error


def entries(path: Path) -> Iterable:
    kind = path.suffix.lower()
    if kind not in FILE_TYPES:
        raise UserError(f"path: {path}: rows are read from {', '.join(FILE_TYPES)} files")
    if kind == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if kind == ".csv":
            yield from csv.DictReader(lines)
        elif kind == ".json":  # a list of rows, one row (MATH's files), or one list under a name, {"data": [...]}
            content = json.load(lines)
            values = list(content.values()) if isinstance(content, dict) else [content]
            yield from values[0] if len(values) == 1 and isinstance(values[0], list) else [content]
        else:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"path: {path}, line {number}: not JSON ({error.msg}): correct or delete the line"
                    ) from None


def local_files(path: Path, split: str, config: str | None = None) -> list[Path]:
    """The files of a split below a folder (or the one file given).

    Understood are SPLIT.jsonl, SPLIT-00000-of-00001.parquet, SPLIT/**/*.json, and each of them inside a folder
    named as the config (main/, socratic/, algebra/), or SPLIT_CONFIG.jsonl. Without a config, `main` is taken
    where the folder has one.
    """
    if path.is_file():
        return [path]
    root = path / (config or "main")
    stem = split
    if not root.is_dir():
        root, stem = path, split if config in (None, "main") else f"{split}_{config}"
    named = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?")
    rows = sorted(file for file in root.rglob("*") if file.suffix.lower() in FILE_TYPES)
    found = [file for file in rows if any(map(named.fullmatch, (file.stem, *file.relative_to(root).parent.parts)))]
    if not found:
        seen = ", ".join(str(file.relative_to(path)) for file in rows[:5]) or "no data file"
        wanted = f"{split!r}" + (f" of config {config!r}" if config else "")
        raise UserError(f"path: {path} has no split {wanted} (it has {seen}): set another split, or give a file")
    return found


@functools.cache
def hub_answers() -> bool:
    """Whether the Hub answers, asked once; True where nobody will ask it. If not, its cache is used alone, as with
    HF_HUB_OFFLINE=1, here and in processes started here: the libraries would try each file again, for minutes."""
    import httpx
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except httpx.TransportError as error:
        what = f"warning: the Hub, {constants.ENDPOINT}, does not answer ({raised(error)})"
        logging.getLogger("grpo_math").warning("%s: its cache is used alone (HF_HUB_OFFLINE=1 saves the attempt)", what)
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it has a copy
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True


def in_hub_cache(kind: str, name: str) -> bool:
    """Whether something of this model or dataset (`kind`) has been downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots").is_dir()


def hub_rows(path: str, configs: Iterable[str | None], split: str) -> Iterable[dict]:
    from datasets import load_dataset

    hub_answers()
    for config in configs:
        try:
            yield from load_dataset(path, config, split=split)
        except Exception as error:
            raise UserError(
                f"path: {path!r} is no local file or folder, and the Hugging Face Hub gave no split {split!r} "
                f"of it ({type(error).__name__}: {reason_of(error)}): without network, download it once "
                f"and give the folder, path: FOLDER (with {split}.jsonl, .json, .csv or .parquet)"
            ) from error


def function_rows(path: str, split: str, params: dict) -> Iterable:
    """The rows of a user's own function; its exceptions become one line."""
    try:
        yield from load_function(path)(split=split, **params)
    except UserError as error:
        raise UserError(f"path: {error}") from error
    except Exception as error:
        raise UserError(f"path: {path} raised {raised(error)}") from error
