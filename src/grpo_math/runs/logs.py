"""Where messages go: ours to the console and the log of the run, those of libraries to the log alone.

Records wait until `log_to` names the file. Of the libraries' records the console shows errors, and where warnings are.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.recipe.batch import is_main_process

SETTINGS = {  # read by libraries when they are imported; the environment's own values are kept
    "TOKENIZERS_PARALLELISM": "false",  # else a warning after each fork
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings of C++ go to stderr, past all handlers
    "TQDM_DISABLE": "1",  # bars for loading, tokenising and saving; downloads from the Hub keep theirs
    "VLLM_CONFIGURE_LOGGING": "0",  # else it prints to stdout
}


class Console(logging.Handler):
    """Prints to what sys.stdout is at the moment, so that a bar on the terminal stays below. A record may have a form
    for it, `console`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(getattr(record, "console", None) or self.format(record), file=sys.stdout, flush=True)
        except Exception:
            self.handleError(record)


class LibraryConsole(Console):
    """Prints errors, and once the name of the file that has the warnings."""

    def __init__(self, file: Path):
        super().__init__()
        self.file, self.told = file, False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            super().emit(record)
        elif record.levelno >= logging.WARNING and not self.told:
            self.told = True
            super().emit(logging.makeLogRecord({"msg": f"warnings of libraries are in {self.file}"}))


class LogFile(logging.FileHandler):
    """The log of a run: all records of its first process, warnings and errors of the others."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        rank = "" if is_main_process() else f" rank {os.environ['RANK']}"
        self.setLevel(logging.WARNING if rank else logging.NOTSET)
        self.setFormatter(logging.Formatter(f"%(asctime)s{rank} %(levelname)s %(name)s: %(message)s"))


console = Console()
waiting = BufferingHandler(10_000)  # records; of more the earlier ones are lost


def loggers() -> tuple[logging.Logger, logging.Logger]:
    """Ours, and the root, to which those of the libraries propagate."""
    return logging.getLogger("grpo_math"), logging.getLogger()


@contextlib.contextmanager
def run_logging() -> Iterator[None]:
    """Print our records, and keep all for `log_to`. The end restores what was there before: a notebook starts several
    runs in one process. Entered before torch is imported; also a decorator. May be nested."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    changed = (*loggers(), logging.getLogger("vllm"))
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in changed]
    raises, shows = logging.raiseExceptions, warnings.showwarning
    logging.raiseExceptions = False  # a full disk is reported once, by what has to be written
    logging.captureWarnings(True)
    captured = warnings.showwarning is not shows  # by this call
    ours, root, vllm = changed
    vllm.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    console.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    ours.addHandler(console)
    for logger in (ours, root):
        logger.addHandler(waiting)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            for handler in logger.handlers[:]:
                if isinstance(handler, Console | LogFile | BufferingHandler) and handler not in handlers:
                    logger.removeHandler(handler)
                    with contextlib.suppress(OSError):  # of a full disk
                        handler.close()
            logger.setLevel(level)
            logger.propagate = propagate
        if captured:
            logging.captureWarnings(False)
        logging.raiseExceptions = raises


def log_to(path: Path) -> None:
    """Make the folder of this file and write all records to it, those that have waited first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = LogFile(path)
    except OSError as error:
        reason = f"cannot write to {path.parent} ({error.strerror})"
        raise UserError(f"output_dir: {reason}: give another --output_dir") from None
    ours, root = loggers()
    for library in root.manager.loggerDict.values():
        for handler in getattr(library, "handlers", [])[:]:
            if isinstance(library, logging.Logger) and type(handler) is logging.StreamHandler:
                library.removeHandler(handler)
                library.propagate = True
    handlers: list[logging.Handler] = [file, LibraryConsole(path)] if is_main_process() else [file]
    for logger, new in ((ours, [file]), (root, handlers)):
        logger.removeHandler(waiting)
        for one in new:
            logger.addHandler(one)
    for record in waiting.buffer:
        for one in [file] if record.name.startswith("grpo_math") else handlers:
            if record.levelno >= one.level:
                one.handle(record)
    waiting.flush()
