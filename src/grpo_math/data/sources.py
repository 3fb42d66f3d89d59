"""Raw rows: from local files, from the Hub, or made on the spot."""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path

from grpo_math.errors import UserError


def read_json(path: Path) -> Iterable[dict]:
    """A list of rows, one row (MATH's one-problem files), or one list under a name ({"data": [...]})."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        return lists[0] if len(content) == len(lists) == 1 else [content]
    return content


def read_jsonl(path: Path) -> Iterable[dict]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"path: {path}, line {number}: not JSON ({error.msg}): correct or delete the line"
                    ) from None


def read_csv(path: Path) -> Iterable[dict]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def read_parquet(path: Path) -> Iterable[dict]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


FILE_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}


def read_rows(path: Path) -> Iterable[dict]:
    """The rows of one file, by its ending; raises UserError for what cannot be read as rows."""
    reader = FILE_READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"path: {path}: rows are read from {', '.join(FILE_READERS)} files")
    try:
        for number, row in enumerate(reader(path), 1):
            if not isinstance(row, dict):
                raise UserError(f"path: {path}, row {number}: want an object with named columns, got {row!r:.60}")
            yield row
    except (OSError, ValueError) as error:
        raise UserError(f"path: {path}: cannot be read as {path.suffix[1:]} ({error})") from error


def local_files(path: Path, split: str, config: str | None = None) -> list[Path]:
    """The files of a split below a folder (or the one file given).

    Understood are SPLIT.jsonl, SPLIT-00000-of-00001.parquet, SPLIT/**/*.json, and each of them inside a folder
    named as the config (main/, socratic/, algebra/), or SPLIT_CONFIG.jsonl. Without a config, `main` is taken
    where the folder has one.
    """
    if path.is_file():
        return [path]
    named = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?")
    if config and (path / config).is_dir():
        root = path / config
    else:
        root = path / "main" if config is None and (path / "main").is_dir() else path
        if config not in (None, "main"):
            named = re.compile(rf"{re.escape(split)}_{re.escape(config)}")
    rows = sorted(file for file in root.rglob("*") if file.suffix.lower() in FILE_READERS)
    found = [
        file
        for file in rows
        if named.fullmatch(file.stem) or any(named.fullmatch(part) for part in file.relative_to(root).parts[:-1])
    ]
    if not found:
        seen = ", ".join(str(file.relative_to(path)) for file in rows[:5]) or "no data file"
        wanted = f"{split!r}" + (f" of config {config!r}" if config else "")
        raise UserError(f"path: {path} has no split {wanted} (it has {seen}): set another split, or give a file")
    return found


def hub_rows(path: str, configs: Iterable[str | None], split: str) -> Iterable[dict]:
    from datasets import load_dataset

    for config in configs:
        try:
            yield from load_dataset(path, config, split=split)
        except Exception as error:
            raise UserError(
                f"path: {path!r} is no local file or folder, and the Hugging Face Hub gave no split {split!r} "
                f"of it ({type(error).__name__}: {str(error).splitlines()[0]}): without network, download it once "
                f"and give the folder, path: FOLDER (with {split}.jsonl, .json, .csv or .parquet)"
            ) from error
