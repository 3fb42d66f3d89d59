"""`grpo-math VERB`: one parser for all verbs. A verb's module is imported when it runs, and gets the parsed options.

The keys of a recipe are not options of the parser: `--key value` pairs that no option takes are passed on, with
`--config`, as `options.words`, the argument of `load_recipe`.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from grpo_math import __version__
from grpo_math.errors import UserError, run_cli, suggestion

DASHED = re.compile(r"--\w[\w.-]*(=|$)")
KEYS = "Every key of the recipe can be given as --key value, nested ones with dots: --eval.every 10."


class Parser(argparse.ArgumentParser):
    """Errors in the arguments are UserErrors, one line each; options are never abbreviated."""

    keys = False  # whether `--key value` pairs of a recipe are passed on
    kind = ""  # GRPO or SFT, where the help lists the keys

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, allow_abbrev=False, **named)

    def format_help(self) -> str:
        if not self.kind:
            return super().format_help()
        from grpo_math.recipe.schema import key_help

        return f"{super().format_help()}{key_help(self.kind)}\n"

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument ") if " --" in message else f"{self.prog}: {message}")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of the verb that `argv` names, and its `module`; `words` where it takes the keys of a recipe."""
    parser, verbs = command_tree()
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise UserError(f"no verb {argv[0]!r}: {suggestion(argv[0], list(verbs), '', {})}")
    options, rest = parser.parse_known_args([underscored(word) for word in argv] or ["--help"])
    if verbs[options.verb].keys:
        options.words = [*(["--config", options.config] if getattr(options, "config", None) else []), *rest]
        options.words += ["--preflight", "false"] if getattr(options, "no_preflight", False) else []
    elif rest:
        known = [name for name in verbs[options.verb]._option_string_actions if name.startswith("--")]
        hint = suggestion(rest[0], known, "", {}) if rest[0].startswith("-") else "no argument of this verb"
        raise UserError(f"grpo-math {options.verb}: {rest[0]}: {hint}")
    return options


def dispatch(argv: list[str]) -> None:
    """Run the command line."""
    options = parse(argv)
    importlib.import_module(f"grpo_math.{options.module}").main(options)


def underscored(word: str) -> str:
    """`--learning-rate` as `--learning_rate`. A reward's name, the second part of its key, is left unchanged."""
    if not DASHED.match(word):
        return word
    name, equals, value = word[2:].partition("=")
    parts = name.split(".")
    parts = [part if parts[0] == "rewards" and n == 1 else part.replace("-", "_") for n, part in enumerate(parts)]
    return f"--{'.'.join(parts)}{equals}{value}"


def whole(least: int = 1) -> Callable[[str], int]:
    """An argument type: a whole number of `least` or more."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"want a whole number of {least} or more, got {text!r}")
        return int(text)

    return convert


def command_tree() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of its verbs by name."""
    parser = Parser("grpo-math", description="GRPO on math problems: one recipe, one command.")
    parser.add_argument("--version", action="version", version=f"grpo-math {__version__}")
    tree = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, module: str, short: str, more: str = "", keys: bool = False) -> Parser:
        text = " ".join(filter(None, [f"{short[0].upper()}{short[1:]}.", more, keys and KEYS]))
        found = tree.add_parser(name, help=short, description=text)
        found.set_defaults(module=module)
        found.keys = keys
        return found

    add_training(verb)
    add_evaluation(verb)
    add_inspection(verb)
    return parser, tree.choices


def add_config(parser: Parser) -> None:
    """The recipe."""
    parser.add_argument("--config", metavar="FILE", help="a recipe file, or the name of a shipped recipe")


def add_layout(parser: Parser) -> None:
    """Where a training runs."""
    parser.add_argument(
        "--layout",
        default="single_gpu",
        metavar="NAME",
        help="cpu, single_gpu, dual_gpu (GPU 0 trains, GPU 1 serves vLLM), multi_gpu, zero2, zero3, fsdp2, multi_node, "
        "dual_gpu_eval, or the path of your own accelerate config (default: single_gpu)",
    )
    parser.add_argument(
        "--num_processes", type=whole(), metavar="N", help="training processes per machine (default: one per free GPU)"
    )
    parser.add_argument("--nodes", type=whole(), metavar="N", help="training machines (default: 1)")
    parser.add_argument("--node_rank", type=whole(0), metavar="I", help="of this machine (default: SLURM's)")
    parser.add_argument("--main_process_ip", metavar="HOST", help="the first machine, the same on all machines")
    parser.add_argument("--main_process_port", type=whole(), metavar="PORT")


def add_training(verb: Callable[..., Parser]) -> None:
    """The verbs that train, and those that prepare it."""
    for name, what in (("train", "one GRPO run from a recipe"), ("sft", "one SFT run, the warm start of a GRPO run")):
        parser = verb(name, name, what, keys=True)
        parser.kind = "GRPO" if name == "train" else "SFT"
        add_config(parser)
        parser.add_argument("--dry_run", action="store_true", help="run all checks, train nothing")
        parser.add_argument("--no_preflight", action="store_true", help="skip the checks before the model is loaded")

    parser = verb(
        "check",
        "check",
        "check a recipe in seconds, before a model is loaded",
        "All checks run, whatever the others find. The exit status is 1 if one finds an error. A training runs the "
        "quick ones by itself and stops on errors; --no_preflight leaves them out.",
        keys=True,
    )
    add_config(parser)
    add_layout(parser)
    parser.add_argument(
        "--sample",
        type=whole(),
        default=0,
        metavar="N",
        help="load the model too, sample one completion for each of N problems, and show them graded",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    parser = verb(
        "launch",
        "launch.launch",
        "train or sft on a layout of GPUs, with its vLLM server",
        "Ctrl-C or SIGTERM finishes the step, saves a checkpoint and exits with status 0; a second one exits at once.",
        keys=True,
    )
    add_config(parser)
    add_layout(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the plan and the commands, start nothing")
    parser.add_argument("--no_preflight", action="store_true", help="skip the checks before the model is loaded")

    parser = verb(
        "serve",
        "launch.serve",
        "the vLLM server alone",
        "For a server and a training on different machines; `grpo-math launch` starts its own. The server takes the "
        "first vllm_tensor_parallel_size GPUs of CUDA_VISIBLE_DEVICES. Whoever reaches its port can change its "
        "weights: open --host only to a network you trust.",
        keys=True,
    )
    add_config(parser)
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    parser.add_argument("--port", type=whole(), default=8000, help="(default: 8000)")

    parser = verb("schema", "recipe.schema", "the JSON schema of a recipe, for editors")
    parser.add_argument("--sft", action="store_true", help="of a recipe for SFT")

    parser = verb("quickstart", "quickstart", "the whole job on a CPU in about two minutes")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="(default: runs/quickstart)")


def add_evaluation(verb: Callable[..., Parser]) -> None:
    """The verbs that evaluate and grade."""
    parser = verb(
        "evaluate",
        "evaluation.evaluate",
        "accuracy, pass@k and maj@k on held-out problems, with intervals",
        "With --config the data, prompt template and grader are those of the training.",
        keys=True,
    )
    add_config(parser)
    parser.add_argument(
        "--model", metavar="M", help="a run, a checkpoint, an adapter, a folder or a Hub id (default: the recipe's)"
    )
    parser.add_argument(
        "--dataset",
        "--suite",
        metavar="D",
        help="datasets by name with commas between them, each with a path if it has one (gsm8k=/data/gsm8k), or a "
        ".yaml file with a list of them, each a mapping as in a recipe",
    )
    parser.add_argument("--split", help="(default: test)")
    parser.add_argument("--samples", metavar="K", help="completions per problem, for mean@K, pass@k and maj@K")
    parser.add_argument("--temperature", metavar="T", help="0 is greedy (default: 0)")
    parser.add_argument("--top_p", metavar="P", help="(default: 1)")
    parser.add_argument("--k", metavar="K", help="the k of pass@k to print, with commas between them")
    parser.add_argument("--max_samples", metavar="N", help="problems (default: all)")
    parser.add_argument("--max_completion_length", metavar="N", help="tokens (default: the training's)")
    parser.add_argument("--batch_size", metavar="N", help="completions generated together, without vLLM (default: 32)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="the folder of results.json and completions.jsonl, new or of the same evaluation, which then continues "
        "(default: one below the recipe's output_dir, or in runs/evaluate)",
    )
    parser.add_argument(
        "--watch",
        metavar="RUN",
        help="evaluate the newest checkpoint of a run, again and again while it trains, as its recipe says",
    )
    parser.add_argument("--device", metavar="GPU", help="the GPU of --watch")

    parser = verb(
        "compare",
        "evaluation.compare",
        "evaluations of the same problems: is one model better?",
        "Each evaluation is compared with the first, problem by problem: the difference in accuracy with its 95 % "
        "interval and, with one completion per problem, the p of McNemar's exact test.",
    )
    parser.add_argument(
        "evaluations",
        nargs="+",
        type=Path,
        metavar="EVALUATION",
        help="a folder of grpo-math evaluate, its completions.jsonl, or RUN/completions/eval-STEP.parquet",
    )
    parser.add_argument(
        "--show", type=whole(0), default=3, metavar="N", help="problems won and lost, with both completions"
    )

    parser = verb("grade", "grading.grade_file", "whether completions are right, and why")
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.jsonl", help='rows with {"gold": ..., "completion": ...}'
    )
    parser.add_argument("--gold", help="the reference answer, for one completion")
    parser.add_argument("--completion", metavar="TEXT")
    parser.add_argument(
        "--out", type=Path, metavar="OUT.jsonl", help="the same rows, with `correct` (null: no readable gold)"
    )
    parser.add_argument(
        "--style",
        default="boxed",
        choices=("boxed", "hash", "answer_tag", "fallback"),
        help="where the answer is expected (default: boxed)",
    )
    parser.add_argument("--workers", type=whole(), metavar="N", help="grading processes (default: by the CPUs)")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="per answer (default: 2)")

    parser = verb(
        "rewards", "checks.show_rewards", "the shipped rewards, or what a recipe's rewards give a text", keys=True
    )
    parser.add_argument("--try", dest="config", metavar="FILE", help="a recipe file, or the name of a shipped recipe")
    parser.add_argument("--completion", metavar="TEXT", help="the text to score")
    parser.add_argument("--gold", metavar="G", help="its reference answer (default: the first problem's)")


def add_inspection(verb: Callable[..., Parser]) -> None:
    """The verbs that show or export what runs wrote."""
    parser = verb(
        "report",
        "report.report",
        "a run as one page: accuracy, curves, completions, recipe",
        "Writes RUN/report.html (for several runs RUN/compare-report.html) with the main curves as .png and .svg.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE.html")
    parser.add_argument("--watch", action="store_true", help="write it again as long as a run goes on")

    parser = verb("runs", "report.list_runs", "the runs in a folder, with their state and accuracy")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="(default: runs)")

    parser = verb(
        "export",
        "models.export",
        "a run as a plain checkpoint, its adapter merged",
        "Weights are merged in float32. --model_init_kwargs.use_safetensors false and --trust_remote_code true allow "
        "what is refused otherwise.",
        keys=True,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, a checkpoint, an adapter or a model")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the written weights; any but float32 rounds them (default: float32)",
    )


def run(verb: str) -> None:
    """`python -m grpo_math.VERB`, as accelerate launches it."""
    sys.exit(run_cli(dispatch, [verb, *sys.argv[1:]]))


def main() -> int:
    """The command `grpo-math`; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # on a terminal that knows no Unicode
    sys.path.insert(0, "")  # as `python -m` does: modules in the current folder can be named in a recipe
    try:
        return run_cli(dispatch)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
