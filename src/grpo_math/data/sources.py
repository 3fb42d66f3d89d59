"""Raw rows: from local files, compressed or not, from what `save_to_disk` wrote, from the Hub, or from a function.

JSON and CSV are read by the standard library: `datasets` would guess a type for each column, and change golds ("007" in
a CSV file becomes 7, the text "2020-01-01" a date, an integer in a column with fractions a float).
"""

import csv
import functools
import io
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from grpo_math.data.functions import load_function
from grpo_math.errors import UserError, one_line, raised, reason_of, some

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
SPLIT_NAME = re.compile("train|test|val|dev|eval", re.IGNORECASE)  # how the names of splits begin
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # pyarrow's names


def bare(path: Path) -> Path:
    """The path without the ending of a compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def stream(path: Path) -> Any:
    """The bytes of a file, compressed or not."""
    import pyarrow

    return pyarrow.input_stream(str(path), compression=COMPRESSED.get(path.suffix.lower()))


def looks_local(path: str) -> bool:
    """Whether a dataset's `path` means a file or folder, not a Hub id."""
    return bare(Path(path)).suffix.lower() in FILE_TYPES or path.startswith((".", "/", "~"))


def rows_of_file(path: Path, skip: Collection[str]) -> Iterable[dict]:
    """The rows of one file, by its ending; raises UserError for what cannot be read as rows. `skip` are columns that
    files which are stored by column need not read."""
    number = 0
    try:
        for number, row in enumerate(entries(path, skip), 1):
            if not isinstance(row, dict):
                raise UserError(f"path: {path}, row {number}: expected an object with named columns, got {row!r:.60}")
            if None in row:  # the csv module's key for them
                raise UserError(
                    f"path: {path}, row {number}: more cells than columns: quote cells that contain "
                    "commas, and separate cells by commas"
                )
            yield row
    except UserError:
        raise
    except Exception as error:  # each format has its own
        after = f", after row {number}" if number else ""
        kind = bare(path).suffix[1:] or "a dataset"
        raise UserError(f"path: {path}{after}: cannot be read as {kind} ({error})") from error


def entries(path: Path, skip: Collection[str]) -> Iterable:
    kind = bare(path).suffix.lower()
    if path.is_dir():
        from datasets import load_from_disk

        yield from without(load_from_disk(str(path)), skip).with_format(None)
        return
    if kind not in FILE_TYPES:
        raise UserError(f"path: {path}: unsupported file type: use {', '.join(FILE_TYPES)}, or these with .gz or .zst")
    if kind == ".parquet":
        from pyarrow import BufferReader, parquet

        whole = path if path == bare(path) else BufferReader(stream(path).read())
        table = parquet.ParquetFile(whole)
        for batch in table.iter_batches(columns=[name for name in table.schema_arrow.names if name not in skip]):
            yield from batch.to_pylist()
        return
    with io.TextIOWrapper(stream(path), encoding="utf-8-sig", newline="") as lines:
        if kind == ".csv":
            table = csv.DictReader(lines, strict=True)  # an open quote would swallow rows
            names = list(table.fieldnames or ())
            if len({*names}) < len(names):
                raise UserError(f"path: {path}: two columns have the same name ({', '.join(names)})")
            if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
                raise UserError(f"path: {path}: expected commas between columns, got {names[0]!r}: save it with commas")
            yield from table
        elif kind == ".json":  # a list of rows, one row (MATH's files), or one list under a name, {"data": [...]}
            try:
                content = json.load(lines, parse_int=integer)
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":
                    raise
                raise UserError(
                    f"path: {path}: several JSON values: if each line is a row, rename it to .jsonl"
                ) from None
            values = list(content.values()) if isinstance(content, dict) else [content]
            yield from values[0] if len(values) == 1 and isinstance(values[0], list) else [content]
        else:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():
                        yield json.loads(line, parse_int=integer)
                except (ValueError, RecursionError) as error:
                    wrong = getattr(error, "msg", error)
                    raise UserError(
                        f"path: {path}, line {number}: not JSON ({wrong}): correct or delete the line"
                    ) from None


def without(dataset: Any, skip: Collection[str]) -> Any:
    """A `Dataset` less these columns."""
    return dataset.remove_columns([name for name in dataset.column_names if name in skip])


def integer(digits: str) -> int | str:
    """An integer of JSON; one with more digits than Python reads stays text."""
    return int(digits) if len(digits) <= 4_300 else digits


def local_files(path: Path, split: str, config: str | None, configs: Iterable[str | None]) -> list[Path]:
    """The files of a split below a folder (or the one file given).

    Understood are SPLIT.jsonl, SPLIT-00000-of-00001.parquet, SPLIT/**/*.json, and each of them inside a folder
    named as the config (main/, socratic/, algebra/), or SPLIT_CONFIG.jsonl, or what `save_to_disk` wrote. Without a
    config, those of `configs` that have a folder are taken. As for `datasets`, files in the folder itself are the
    split `train` where no name is that of a split, and the folder of the config `default` is data/.
    """
    if path.is_file():
        return [path]
    names = [config] if config else [name for name in configs if name]
    folders = ("data" if name == "default" and not (path / name).is_dir() else name for name in names)
    inside = [folder for name in folders for folder in (path / name, *path.glob(f"*/{name}")) if folder.is_dir()]
    stem = split if inside or config in (None, *configs) else f"{split}_{config}"
    found, seen = [], []
    for root in inside or [path]:
        if saved := saved_splits(root):
            found += [folder for name, folder in saved.items() if name == stem]
            seen += list(saved)
            continue
        named = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+(-[0-9a-f]+)?)?")
        files = {file for file in root.rglob("*") if bare(file).suffix.lower() in FILE_TYPES}
        rows = sorted({bare(file): file for file in sorted(files, reverse=True)}.values())  # no compressed copies
        parts = {file: (bare(file).stem, *file.relative_to(root).parent.parts) for file in rows}
        nameless = stem == "train" and not any(map(SPLIT_NAME.match, itertools.chain(*parts.values())))
        found += [file for file in rows if any(map(named.fullmatch, parts[file])) or (nameless and file.parent == root)]
        seen += [str(file.relative_to(path)) for file in rows]
    if not found:
        wanted = f"{split!r}" + (f" of config {config!r}" if config else "")
        there = some(seen, 8) or "no data file"
        raise UserError(f"path: {path} has no split {wanted} (it has {there}): set another split, or give a file")
    return found


def saved_splits(folder: Path) -> dict[str, Path]:
    """The folders of the splits that `save_to_disk` wrote; a dataset alone is the split it was made of, else train."""
    several, one = folder / "dataset_dict.json", folder / "state.json"
    refused = (ValueError, LookupError, AttributeError, TypeError)
    with one_line(f"path: {folder}: not what save_to_disk writes", "write it again, or name a file", refused):
        if several.is_file():
            return {split: folder / split for split in json.loads(several.read_text(encoding="utf-8"))["splits"]}
        if not one.is_file() or not any(folder.glob("*.arrow")):
            return {}
        split = json.loads(one.read_text(encoding="utf-8")).get("_split")
        return {str(split or "train").partition("[")[0]: folder}


@functools.cache
def hub_answers() -> bool:
    """Whether the Hub answers, asked once; False with HF_HUB_OFFLINE=1. If not, its cache is used alone, as with that
    variable, here and in processes started here: the libraries would try each file again, for minutes."""
    import httpx
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except httpx.TransportError as error:
        what = f"warning: the Hub, {constants.ENDPOINT}, does not answer ({raised(error)})"
        logging.getLogger("grpo_math").warning("%s: using only its cache (HF_HUB_OFFLINE=1 skips the attempt)", what)
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it has a copy
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True


def in_hub_cache(kind: str, name: str) -> bool:
    """Whether something of this model or dataset (`kind`) has been downloaded, or prepared by `datasets`."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    prepared = os.environ.get("HF_DATASETS_CACHE", f"{HF_HOME}/datasets")
    folders = (
        Path(HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots"),
        Path(prepared, name.replace("/", "___")),
    )
    return any(folder.is_dir() for folder in folders)


def hub_rows(path: str, configs: Iterable[str | None], split: str, skip: Collection[str]) -> Iterable[dict]:
    from datasets import load_dataset

    hub_answers()
    for config in configs:
        try:
            yield from without(load_dataset(path, config, split=split), skip)
        except Exception as error:
            raise UserError(
                f"path: {path!r} is not a local file or folder, and the Hub returned no split {split!r} "
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
