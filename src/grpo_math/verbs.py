"""The verbs of `grpo-math`: module, help and options of each. No verb's module is imported here."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.grading import STYLES, PoolSettings

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"  # of a new recipe


def whole(least: int) -> Callable[[str], int]:
    """An argument type: an integer of at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
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
DRY_RUN = option("--dry_run", "", "print the plan and start nothing (`grpo-math check` runs the checks)")
NO_PREFLIGHT = option("--no_preflight", "", "skip the checks that run before the model is loaded")
TRAINING = [CONFIG, DRY_RUN, NO_PREFLIGHT]
RESUMES = (
    "With --resume_from_checkpoint auto, a run continues from its last checkpoint. Ctrl-C or SIGTERM finishes the "
    "step, saves a checkpoint and exits with status 0; a second one exits at once."
)
LAYOUT = [
    option(
        "--layout", "NAME", "cpu, single_gpu (the default), dual_gpu (GPU 0 trains, GPU 1 serves vLLM), dual_gpu_eval "
        "(GPU 0 trains, GPU 1 evaluates), multi_gpu, zero2, zero3, fsdp2, multi_node, or the path of an accelerate "
        "config", default="single_gpu",
    ),
    option("--num_processes", "N", "training processes per machine (default: one per free GPU)", type=whole(1)),
    option("--nodes", "N", "training machines (default: 1)", type=whole(1)),
    option("--node_rank", "I", "the rank of this machine, from 0 (default: SLURM_NODEID)", type=whole(0)),
    option("--main_process_ip", "HOST", "the address of the first machine, the same on all machines"),
    option("--main_process_port", "PORT", "its port, the same on all machines", type=whole(1)),
]  # fmt: skip
VERBS = {
    "quickstart": Verb(
        "quickstart",
        "train on a CPU in one to two minutes, without downloads",
        [
            option("--seed", "N", "the random seed (default: 0)", type=int, default=0),
            option("--output_dir", "DIR", "the run folder (default: runs/quickstart)", type=Path,
                   default=Path("runs/quickstart")),
        ],
        keys=False,
    ),
    "init": Verb(
        "checks.init",
        "write a commented recipe for your own problems",
        [
            option(
                "source", "PROBLEMS", "a .jsonl, .json, .csv or .parquet file, a folder of such files, a Hub id, or a "
                "dataset that `grpo-math datasets` lists",
            ),
            option("--out", "FILE.yaml", "the recipe (default: recipe.yaml)", type=Path, default=Path("recipe.yaml")),
            option("--model", "M", f"a folder or Hub id (default: {MODEL})", default=MODEL),
            option("--question", "COLUMN", "the column of the question (default: recognized by its name)"),
            option("--answer", "COLUMN", "the column of the final answer (default: recognized by its name)"),
            option("--worked", "COLUMN", "the column of the worked solution, if there is one"),
        ],
        "Existing files are never overwritten. If the problems have no test split, a tenth of them is held out.",
        keys=False,
    ),
    "check": Verb(
        "check",
        "check a recipe in seconds, before a model is loaded",
        [
            CONFIG,
            *LAYOUT,
            option("--sample", "N", "load the model and show N graded completions", type=whole(1), default=0),
            option("--strict", "", "exit with status 1 for warnings too"),
            option("--json", "", "print the findings as JSON"),
        ],
        "All checks run, even if some of them find errors. The exit status is 1 if there is an error. A training runs "
        "the quick checks itself and stops on errors, unless --no_preflight is given.",
    ),
    "train": Verb("train", "train with GRPO in one process", TRAINING, RESUMES, kind="GRPO"),
    "sft": Verb("sft", "train with SFT in one process, to warm-start a GRPO run", TRAINING, RESUMES, kind="SFT"),
    "launch": Verb(
        "launch.launch",
        "train on a layout of GPUs, with its vLLM server if it has one",
        [CONFIG, *LAYOUT, DRY_RUN, NO_PREFLIGHT],
        RESUMES,
    ),
    "serve": Verb(
        "launch.serve",
        "start only the vLLM server of a training",
        [
            CONFIG,
            option("--host", "HOST", "the address to listen on (default: 127.0.0.1)", default="127.0.0.1"),
            option("--port", "PORT", "the port to listen on (default: 8000)", type=whole(1), default=8000),
            option("--dry_run", "", "print the server's command and start nothing"),
        ],
        "Use it if the server and the training run on different machines; `grpo-math launch` starts its own server. "
        "The server uses the first vllm_tensor_parallel_size GPUs of CUDA_VISIBLE_DEVICES. Anyone who can reach the "
        "port can change the weights: use --host only in a network that you trust.",
    ),
    "sweep": Verb(
        "launch.sweep",
        "train settings of a recipe with several seeds, and compare them",
        [
            CONFIG,
            option(
                "--set", "KEY=A,B", "a key of the recipe and its values, as YAML, separated by commas; repeat it for "
                "more keys. The first value of each key is the baseline", action="append",
            ),
            option("--seeds", "N", "runs per setting, starting with the recipe's seed (default: 3)", type=whole(1),
                   default=3),
            option("--out", "DIR", "the folder for the runs, the table and the plot", type=Path, required=True),
            option("--one_at_a_time", "", "vary one key at a time instead of running all combinations"),
            option("--parallel", "N", "runs at the same time (default: one per GPU)", type=whole(1)),
            option("--layout", "NAME", "the layout of `grpo-math launch` for each run (default: one process)"),
            option("--table", "", "start nothing; write the table and the plot of the finished runs"),
            option("--dry_run", "", "print the runs that would start, and start nothing"),
            NO_PREFLIGHT,
        ],
        "Each run trains in DIR/SETTING/seed-N. A failed run does not stop the others. The same command starts the "
        "runs that are missing, and resumes interrupted ones. The exit status is 1 if a run failed.",
    ),
    "evaluate": Verb(
        "evaluation.evaluate",
        "measure accuracy, pass@k and maj@k on held-out problems",
        [
            CONFIG,
            option("--model", "M", "a run, a checkpoint, an adapter, a folder or a Hub id (default: the recipe's)"),
            option(
                "--suite", "D", "the datasets: names separated by commas, each with its path if it is local "
                "(gsm8k=/data/gsm8k), or a .yaml file with a list of mappings as in a recipe", dest="dataset",
            ),
            option("--dataset --datasets", "D", argparse.SUPPRESS, dest="dataset"),  # other names of --suite
            option("--split", "SPLIT", "the split to evaluate on (default: test)"),
            option("--samples", "K", "completions per problem, for mean@K, pass@k and maj@K (default: 1)"),
            option("--temperature", "T", "the sampling temperature; 0 is greedy (default: 0)"),
            option("--top_p", "P", "the probability mass of nucleus sampling (default: 1)"),
            option("--k", "K", "values of k for pass@k, separated by commas (default: the powers of two)"),
            option("--max_samples", "N", "problems per dataset (default: all)"),
            option("--max_completion_length", "N", "tokens per completion (default: that of the recipe)"),
            option("--batch_size", "N", "completions per batch without vLLM (default: 32)"),
            option(
                "--out", "DIR", "the folder for results.json and completions.jsonl; an interrupted evaluation in it is "
                "continued (default: a folder in the recipe's output_dir, or in runs/evaluate)",
            ),
            option("--watch", "RUN", "evaluate each new checkpoint of this run, with the settings of its recipe"),
            option("--device", "GPU", "the GPU of --watch: its index among the visible GPUs, or its UUID"),
        ],
        "Accuracies have 95 % intervals. With --config, the data, the prompt template and the grader are those of the "
        "recipe.",
    ),
    "compare": Verb(
        "evaluation.compare",
        "compare models problem by problem, or settings over runs",
        [
            option(
                "evaluations", "EVALUATION", "an output folder of `grpo-math evaluate`, its completions.jsonl, a run "
                "(its last evaluation), or RUN/completions/eval-STEP.parquet", nargs="+",
            ),
            option(
                "--seeds", "", "compare settings: each EVALUATION is the runs of one setting, separated by commas "
                "(A1,A2,A3 B1,B2,B3), or a quoted pattern",
            ),
            option("--show", "N", "problems to print of those won and lost (default: 3)", type=whole(0), default=3),
        ],
        "Each evaluation is compared with the first one, problem by problem: the difference in accuracy, its 95 % "
        "interval and the p-value of an exact test (McNemar's test if there is one completion per problem). With "
        "--seeds, whole runs are compared with Welch's t-test.",
        keys=False,
    ),
    "report": Verb(
        "report.report",
        "write an HTML page: accuracy, curves, completions, recipe",
        [
            option("runs", "RUN", "a run folder; several are compared on one page", nargs="+", type=Path),
            option("--out", "FILE.html", "the page (default: RUN/report.html, or RUN/compare-report.html for several "
                   "runs)", type=Path),
            option("--watch", "", "update the page while the run is training"),
            option("--check", "", "write no page; compare finished runs with the bounds of their recipes in "
                   "benchmarks/expected.yaml"),
        ],
        "The main curves are also written as .png and .svg files next to the page. With --check, the exit status is 1 "
        "if a bound fails.",
        keys=False,
    ),
    "runs": Verb(
        "report.list_runs",
        "list the runs in a folder, with their state and accuracy",
        [option("folder", "FOLDER", "the folder that holds the runs (default: runs)", nargs="?", type=Path)],
        keys=False,
    ),
    "grade": Verb(
        "grading.grade_file",
        "grade completions against reference answers, and show why",
        [
            option("file", "FILE.jsonl", 'rows with {"gold": ..., "completion": ...}', nargs="?", type=Path),
            option("--gold", "G", "the reference answer, to grade one completion"),
            option("--completion", "TEXT", "the completion to grade"),
            option("--out", "OUT.jsonl", "a file for the rows with `correct` (null: the gold cannot be read)",
                   type=Path),
            option(
                "--style", "STYLE", "how completions mark the answer: boxed (the default), hash, answer_tag or "
                "fallback", default="boxed", choices=tuple(STYLES),
            ),
            option("--workers", "N", "grading processes (default: one per core)", type=whole(1)),
            option("--timeout", "SECONDS", "the time limit per answer (default: 2)", type=float,
                   default=PoolSettings.timeout),
        ],
        keys=False,
    ),
    "rewards": Verb(
        "checks.show_rewards",
        "list the shipped rewards, or score a text with a recipe's",
        [
            option("--try", "FILE", "a recipe file, or the name of a shipped recipe", dest="config"),
            option("--completion", "TEXT", "the text to score"),
            option("--gold", "G", "its reference answer (default: that of the first problem)"),
        ],
    ),
    "datasets": Verb(
        "checks.show_datasets",
        "list the datasets that a recipe can name",
        [],
        "Each of them is read from the Hub, or from a local file or folder: {name: NAME, path: PATH}.",
        keys=False,
    ),
    "export": Verb(
        "models.export",
        "write a run's model as a plain checkpoint, its adapter merged",
        [
            option("run", "RUN", "a run, a checkpoint, an adapter or a model", type=Path),
            option("out", "OUT", "a new folder", type=Path),
            option(
                "--dtype", "DTYPE", "the dtype of the written weights: float32 (the default), bfloat16 or float16",
                choices=("float32", "bfloat16", "float16"), default="float32",
            ),
        ],
        "The weights are merged in float32. --model_init_kwargs.use_safetensors false allows pickled weights, and "
        "--trust_remote_code true allows a model's own code; both are refused by default.",
    ),
    "schema": Verb(
        "recipe.schema",
        "print the JSON schema of a recipe, for editors",
        [option("--sft", "", "the schema of a recipe for SFT")],
        keys=False,
    ),
    "completion": Verb(
        "completion",
        "print a shell's completion script: verbs, options, recipe keys",
        [option("shell", "SHELL", "bash or zsh", choices=("bash", "zsh"))],
        'For bash, add to ~/.bashrc: eval "$(grpo-math completion bash)". For zsh, write the output to a file named '
        "_grpo-math in a folder of $fpath.",
        keys=False,
    ),
}  # fmt: skip
TASKS = {
    "start": "quickstart init check",
    "train": "train sft launch serve sweep",
    "evaluate": "evaluate compare report runs",
    "look up and try": "grade rewards datasets schema",
    "use elsewhere": "export completion",
}
