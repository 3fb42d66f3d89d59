"""`grpo-math VERB`: one parser for all verbs. A verb's module is imported when it runs, and gets the parsed options.

The keys of a recipe are not options of the parser: `--key value` pairs that no option takes are passed on, with
`--config`, as `options.words`, the argument of `load_recipe`.
"""

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from grpo_math import __version__
from grpo_math.errors import UserError, run_cli, suggestion
from grpo_math.grading import STYLES, PoolSettings

DASHED = re.compile(r"--\w[\w.-]*(=|$)")
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"  # of a new recipe
KEYS = "Every key of the recipe can be given as --key value, nested ones with dots: --eval.every 10."


def whole(least: int) -> Callable[[str], int]:
    """An argument type: a whole number of `least` or more."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"want a whole number of {least} or more, got {text!r}")
        return int(text)

    return convert


def option(names: str, metavar: str, text: str, **more: Any) -> tuple[list[str], dict[str, Any]]:
    """The arguments of `add_argument` for an option, or for an argument without dashes; a flag has no metavar."""
    return names.split(), ({"metavar": metavar} if metavar else {"action": "store_true"}) | {"help": text} | more


@dataclass(frozen=True)
class Verb:
    """A verb: its module, its help in a few words and in sentences, its options, and whether it takes recipe keys."""

    module: str
    short: str
    options: list[tuple[list[str], dict[str, Any]]]
    more: str = ""
    keys: bool = True
    kind: str = ""  # GRPO or SFT, where the help lists the keys


CONFIG = option("--config", "FILE", "a recipe file, or the name of a shipped recipe")
NO_PREFLIGHT = option("--no_preflight", "", "skip the checks before the model is loaded")
TRAINING = [CONFIG, option("--dry_run", "", "run all checks, train nothing"), NO_PREFLIGHT]
LAYOUT = [
    option(
        "--layout", "NAME", "cpu, single_gpu (the default), dual_gpu (GPU 0 trains, GPU 1 serves vLLM), dual_gpu_eval, "
        "multi_gpu, zero2, zero3, fsdp2, multi_node, or the path of your own accelerate config", default="single_gpu",
    ),
    option("--num_processes", "N", "training processes per machine (default: one per free GPU)", type=whole(1)),
    option("--nodes", "N", "training machines (default: 1)", type=whole(1)),
    option("--node_rank", "I", "of this machine (default: SLURM's)", type=whole(0)),
    option("--main_process_ip", "HOST", "the first machine, the same on all machines"),
    option("--main_process_port", "PORT", "its port, the same on all machines", type=whole(1)),
]  # fmt: skip
VERBS = {
    "train": Verb("train", "one GRPO run from a recipe", TRAINING, kind="GRPO"),
    "sft": Verb("sft", "one SFT run, the warm start of a GRPO run", TRAINING, kind="SFT"),
    "init": Verb(
        "checks.init",
        "write a commented recipe for your own problems",
        [
            option(
                "source", "PROBLEMS", "a .jsonl, .json, .csv or .parquet file, a folder of such files, a Hub id, or a "
                "dataset that `grpo-math datasets` lists",
            ),
            option("--out", "FILE.yaml", "the recipe (default: recipe.yaml)", type=Path, default="recipe.yaml"),
            option("--model", "M", "a folder or Hub id (default: Qwen/Qwen2.5-1.5B-Instruct)", default=MODEL),
            option("--question", "COLUMN", "the column of the question (default: recognized by its name)"),
            option("--answer", "COLUMN", "the column of the final answer (default: recognized by its name)"),
            option("--worked", "COLUMN", "the column of the worked solution, if there is one"),
        ],
        "Existing files are never overwritten. Where the problems have no test split, one tenth of them is held out.",
        keys=False,
    ),
    "check": Verb(
        "check",
        "check a recipe in seconds, before a model is loaded",
        [
            CONFIG,
            *LAYOUT,
            option("--sample", "N", "show N completions of the model, with their grades", type=whole(1), default=0),
            option("--strict", "", "warnings count as errors for the exit status"),
            option("--json", "", "print the findings as JSON"),
        ],
        "All checks run, whatever the others find. The exit status is 1 if one finds an error, with --strict also for "
        "a warning. A training runs the quick ones by itself and stops on errors; --no_preflight leaves them out.",
    ),
    "launch": Verb(
        "launch.launch",
        "train or sft on a layout of GPUs, with its vLLM server",
        [CONFIG, *LAYOUT, option("--dry_run", "", "print the plan and the commands, start nothing"), NO_PREFLIGHT],
        "Ctrl-C or SIGTERM finishes the step, saves a checkpoint and exits with status 0; a second one exits at once.",
    ),
    "sweep": Verb(
        "launch.sweep",
        "settings of a recipe over several seeds: a table and a plot",
        [
            CONFIG,
            option(
                "--set", "KEY=A,B", "a key of the recipe and its values, YAML with commas between them; again for "
                "further keys. The first values are the baseline", action="append",
            ),
            option("--seeds", "N", "runs per setting, from the recipe's seed on (3)", type=whole(1), default=3),
            option("--out", "DIR", "the folder of the runs, the table and the plot", type=Path, required=True),
            option("--one_at_a_time", "", "change one key at a time, instead of all combinations"),
            option("--parallel", "N", "runs at the same time (default: one per GPU)", type=whole(1)),
            option("--layout", "NAME", "a layout of `grpo-math launch` for each run (default: one process)"),
            option("--table", "", "start nothing: the table and the plot of the finished runs"),
            NO_PREFLIGHT,
        ],
        "Each run is a training of its own in DIR/SETTING/seed-N. The same command runs what is missing, after Ctrl-C, "
        "kill -9 or a failed run too, which does not end the others. The exit status is 1 where a run failed.",
    ),
    "serve": Verb(
        "launch.serve",
        "the vLLM server alone",
        [
            CONFIG,
            option("--host", "HOST", "(default: 127.0.0.1)", default="127.0.0.1"),
            option("--port", "PORT", "(default: 8000)", type=whole(1), default=8000),
        ],
        "For a server and a training on different machines; `grpo-math launch` starts its own. The server takes the "
        "first vllm_tensor_parallel_size GPUs of CUDA_VISIBLE_DEVICES. Whoever reaches its port can change its "
        "weights: open --host only to a network you trust.",
    ),
    "evaluate": Verb(
        "evaluation.evaluate",
        "accuracy, pass@k and maj@k on held-out problems, with intervals",
        [
            CONFIG,
            option("--model", "M", "a run, a checkpoint, an adapter, a folder or a Hub id (default: the recipe's)"),
            option(
                "--dataset --datasets --suite", "D", "datasets by name with commas between them, each with a path if "
                "it has one (gsm8k=/data/gsm8k), or a .yaml file with a list of them, each a mapping as in a recipe",
            ),
            option("--split", "SPLIT", "(default: test, or what a dataset has in its place)"),
            option("--samples", "K", "completions per problem, for mean@K, pass@k and maj@K (default: 1)"),
            option("--temperature", "T", "0 is greedy (default: 0)"),
            option("--top_p", "P", "(default: 1)"),
            option("--k", "K", "the k of pass@k to print, with commas between them"),
            option("--max_samples", "N", "problems (default: all)"),
            option("--max_completion_length", "N", "tokens (default: the training's)"),
            option("--batch_size", "N", "completions generated together, without vLLM (default: 32)"),
            option(
                "--out", "DIR", "the folder of results.json and completions.jsonl, new or of the same evaluation, "
                "which then continues (default: one below the recipe's output_dir, or in runs/evaluate)",
            ),
            option("--watch", "RUN", "evaluate each new checkpoint of a run, as its recipe says"),
            option("--device", "GPU", "the GPU of --watch: its place among the visible ones, from 0, or its UUID"),
        ],
        "With --config the data, prompt template and grader are those of the training.",
    ),
    "compare": Verb(
        "evaluation.compare",
        "compare models by their evaluations of the same problems, or settings over their runs",
        [
            option(
                "evaluations", "EVALUATION", "a folder of grpo-math evaluate, its completions.jsonl, a run (its last "
                "evaluation), or RUN/completions/eval-STEP.parquet", nargs="+",
            ),
            option(
                "--seeds", "", "compare settings, not models: each EVALUATION stands for the runs of one setting, with "
                "commas between them (A1,A2,A3 B1,B2,B3) or as a pattern in quotes",
            ),
            option("--show", "N", "problems won and lost to print (default: 3)", type=whole(0), default=3),
        ],
        "Each evaluation is compared with the first, problem by problem: the difference in accuracy with its 95 % "
        "interval and the p of an exact test, McNemar's with one completion per problem. With --seeds the runs are "
        "compared, by Welch's t-test.",
        keys=False,
    ),
    "report": Verb(
        "report.report",
        "a run as one page: accuracy, curves, completions, recipe",
        [
            option("runs", "RUN", "a run's folder", nargs="+", type=Path),
            option("--out", "FILE.html", "(default: RUN/report.html, of several runs compare-report.html)", type=Path),
            option("--watch", "", "write it again while the run is training"),
        ],
        "The main curves are written next to the page, as .png and .svg.",
        keys=False,
    ),
    "runs": Verb(
        "report.list_runs",
        "the runs in a folder, with their state and accuracy",
        [option("folder", "FOLDER", "(default: runs)", nargs="?", type=Path)],
        keys=False,
    ),
    "grade": Verb(
        "grading.grade_file",
        "whether completions are right, and why",
        [
            option("file", "FILE.jsonl", 'rows with {"gold": ..., "completion": ...}', nargs="?", type=Path),
            option("--gold", "G", "the reference answer, for one completion"),
            option("--completion", "TEXT", "the completion"),
            option("--out", "OUT.jsonl", "the same rows, with `correct` (null: no readable gold)", type=Path),
            option(
                "--style", "STYLE", "where the answer is: boxed (the default), hash, answer_tag or fallback",
                default="boxed", choices=tuple(STYLES),
            ),
            option("--workers", "N", "grading processes (default: by the CPUs)", type=whole(1)),
            option("--timeout", "SECONDS", "per answer (default: 2)", type=float, default=PoolSettings.timeout),
        ],
        keys=False,
    ),
    "datasets": Verb(
        "checks.show_datasets",
        "the benchmarks and training sets that have a name",
        [],
        "Each is read from the Hub, or from a file or folder, {name: NAME, path: PATH}.",
        keys=False,
    ),
    "rewards": Verb(
        "checks.show_rewards",
        "the shipped rewards, or what a recipe's rewards give a text",
        [
            option("--try", "FILE", "a recipe file, or the name of a shipped recipe", dest="config"),
            option("--completion", "TEXT", "the text to score"),
            option("--gold", "G", "its reference answer (default: the first problem's)"),
        ],
    ),
    "export": Verb(
        "models.export",
        "a run as a plain checkpoint, its adapter merged",
        [
            option("run", "RUN", "a run, a checkpoint, an adapter or a model", type=Path),
            option("out", "OUT", "a new folder", type=Path),
            option(
                "--dtype", "DTYPE", "of the written weights: float32 (the default), or rounded: bfloat16, float16",
                choices=("float32", "bfloat16", "float16"), default="float32",
            ),
        ],
        "Weights are merged in float32. --model_init_kwargs.use_safetensors false and --trust_remote_code true allow "
        "what is refused otherwise.",
    ),
    "schema": Verb(
        "recipe.schema",
        "the JSON schema of a recipe, for editors",
        [option("--sft", "", "of a recipe for SFT")],
        keys=False,
    ),
    "quickstart": Verb(
        "quickstart",
        "the whole job on a CPU in about two minutes",
        [
            option("--seed", "N", "(default: 0)", type=int, default=0),
            option("--output_dir", "DIR", "(default: runs/quickstart)", type=Path, default=Path("runs/quickstart")),
        ],
        keys=False,
    ),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Errors in the arguments are UserErrors, one line each."""

    verb: Verb | None = None

    def format_help(self) -> str:
        if self.verb is None or not self.verb.kind:
            return super().format_help()
        from grpo_math.recipe.schema import key_help

        return f"{super().format_help()}{key_help(self.verb.kind)}\n"

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument ") if " --" in message else f"{self.prog}: {message}")


def command_line() -> Parser:
    """The parser of all verbs."""
    parser = Parser("grpo-math", description="GRPO on math problems: one recipe, one command.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"grpo-math {__version__}")
    tree = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        text = f"{verb.short[0].upper()}{verb.short[1:]}. {verb.more} {KEYS if verb.keys else ''}"
        found = tree.add_parser(name, help=verb.short, description=text, allow_abbrev=False)
        found.verb = verb
        for names, more in verb.options:
            found.add_argument(*names, **more)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The verb that `argv` names, and its options; where it takes recipe keys, `words` are `--config` and those."""
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(f"no verb {argv[0]!r}: {suggestion(argv[0], list(VERBS), '', {})}")
    options, rest = command_line().parse_known_args([underscored(word) for word in argv] or ["--help"])
    verb = VERBS[options.verb]
    if verb.keys:
        config = getattr(options, "config", None)
        options.words = [*(["--config", config] if config else []), *rest]
        options.words += ["--preflight", "false"] if getattr(options, "no_preflight", False) else []
    elif rest:
        known = [name for names, _ in verb.options for name in names if name.startswith("-")]
        hint = suggestion(rest[0], known, "", {}) if rest[0].startswith("-") else "no argument of this verb"
        raise UserError(f"grpo-math {options.verb}: {rest[0]}: {hint}")
    return options


def underscored(word: str) -> str:
    """`--learning-rate` as `--learning_rate`. A reward's name, the second part of its key, is left unchanged."""
    if not DASHED.match(word):
        return word
    name, equals, value = word[2:].partition("=")
    parts = name.split(".")
    parts = [part if parts[0] == "rewards" and n == 1 else part.replace("-", "_") for n, part in enumerate(parts)]
    return f"--{'.'.join(parts)}{equals}{value}"


def dispatch(argv: list[str]) -> None:
    """Run the command line: import the verb's module, and give it the options."""
    options = parse(argv)
    importlib.import_module(f"grpo_math.{VERBS[options.verb].module}").main(options)


def run(verb: str) -> None:
    """`python -m grpo_math.VERB`, as accelerate launches it."""
    sys.exit(run_cli(dispatch, [verb, *sys.argv[1:]]))


def main() -> int:
    """The command `grpo-math`; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be a terminal that knows no Unicode
            stream.reconfigure(errors="backslashreplace")
    sys.path.insert(0, "")  # as `python -m` does: modules in the current folder can be named in a recipe
    try:
        return run_cli(dispatch)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
