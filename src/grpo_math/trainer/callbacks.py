"""What accompanies the training: metrics.jsonl, logs of completions, accuracy before, during and after."""

import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState

from grpo_math.evaluation import (
    Benchmark,
    Evaluation,
    Scoring,
    metrics_of,
    score_together,
    setup_of,
    solve_together,
    summarise_each,
)
from grpo_math.generation import training_engine
from grpo_math.models import Tools, ends_of
from grpo_math.recipe.parts import EvalSpec
from grpo_math.runs.folder import (
    append_rows,
    forget,
    forget_after,
    forget_completions,
    read_rows,
    write_rows,
    write_table,
)
from grpo_math.runs.progress import WIDTH
from grpo_math.trainer.checkpoints import Abandoned, save_whole, unfinished
from grpo_math.trainer.progress import is_step
from grpo_math.trainer.trainer import Trainer as OurGRPOTrainer

ROUNDING = 1e-9  # of two equal means

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """One JSON line per log in OUTPUT_DIR/metrics.jsonl: step, epoch, and every metric under TRL's name, or eval/X.

    The first callback to begin: before `begun`, TRL and transformers only settle their settings.
    """

    def __init__(self, output_dir: Path):
        self.path, self.begun = output_dir / "metrics.jsonl", False

    def on_train_begin(self, args, state, control, **_):
        """After a resume, forget the steps that are trained again."""
        self.begun = True
        if state.is_world_process_zero:
            made = state.global_step or -1  # at the beginning: nothing
            forget_after(made, self.path)
            forget_completions(self.path.parent, made)

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        metrics = {re.sub("^eval_", "eval/", key): finite(value) for key, value in logs.items()}
        append_rows([{"step": state.global_step, **metrics}], self.path)


def finite(value):
    """NaN and infinity are not JSON: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class CompletionLogs(TrainerCallback):
    """Has TRL log the completions (OUTPUT_DIR/completions/completions_STEP.parquet, and W&B's and trackio's tables) of
    the first step and then of one step in `every`; 0 is never, None is about a hundred times per run.

    TRL logs them right after a log's callbacks, and has those of the current generation batch, of `stride` steps. Only
    completions that may be logged are graded for it.
    """

    FILES = 100

    def __init__(self, trainer: OurGRPOTrainer, stride: int, every: int | None):
        self.trainer, self.stride, self.every = trainer, stride, every

    def on_train_begin(self, args, state, control, **_):
        self.first = self.last = state.global_step

    def on_step_begin(self, args, state, control, **_):
        every = max(1, state.max_steps // self.FILES) if self.every is None else self.every
        begun = self.begun(state.global_step + 1)
        self.trainer.keep_completions = every > 0 and begun // every > self.begun(self.last) // every

    def on_log(self, args, state, control, logs=None, **_):
        self.trainer.log_completions = is_step(logs) and self.trainer.keep_completions
        if is_step(logs):
            self.last = state.global_step

    def begun(self, step: int) -> int:
        """The number of steps before the generation batch that this step was trained on."""
        return self.first + (step - 1 - self.first) // self.stride * self.stride


class Evaluations(TrainerCallback):
    """Evaluate before the first step and after the last, and every few steps, on the training's own engine.

    One line each in OUTPUT_DIR/eval.jsonl, every completion in OUTPUT_DIR/completions/eval-STEP.parquet, and for
    metrics.jsonl and W&B eval/accuracy and its companions, with those of `scoring` eval/reward and eval/rewards/NAME;
    with several datasets first each, then all problems together, which is what counts. A resumed run keeps the
    evaluations made up to its checkpoint. With `eval.best` the model with the highest lower end of accuracy's interval
    is in OUTPUT_DIR/best/. `longest` is the longest completion, in tokens. If `stopped()`, an evaluation ends
    unfinished: the first and the last one, which a resumed run makes again, with Abandoned. With `eval.stop_at` or
    `eval.patience` the step of an evaluation becomes the last one of the run.
    """

    def __init__(
        self,
        trainer: Trainer,
        benchmarks: list[Benchmark],
        spec: EvalSpec,
        longest: int,
        scoring: Scoring,
        tools: Tools | None = None,
    ):
        self.stopped: Callable[[], bool] = lambda: False
        self.trainer, self.benchmarks = trainer, benchmarks
        self.spec, self.longest, self.scoring, self.tools = spec, longest, scoring, tools
        self.folder = Path(trainer.args.output_dir or "")
        self.file = self.folder / "eval.jsonl"
        self.before: dict | None = None
        self.after: dict | None = None
        self.best: dict | None = None
        self.made: list[dict] = []  # the row that counts of each evaluation, in order
        self.ended = ""  # why, where the training ended before the steps of the recipe
        self.seconds, self.count = 0.0, 0  # of this process; a resumed run did not spend those before it

    def on_train_begin(self, args, state, control, model=None, **_):
        known: list[Any] = [None, None, []]
        if state.is_world_process_zero:
            known = self.recall(state.global_step or -1, state.max_steps if self.spec.before_after else None)
        if not self.benchmarks:
            return
        self.before, self.best, self.made = broadcast_object_list(known)  # what one has read: all must decide alike
        if state.global_step == 0 and self.spec.before_after:
            self.before = self.measure("before", model, state)
        elif self.made and self.made[-1]["step"] == state.global_step:  # killed between its last step and its end
            self.end(state)

    def recall(self, step: int, last: int | None) -> list[Any]:
        """What a resumed run knows of its first evaluation, of its best model so far, and of all evaluations; a model
        from a later step is no longer one of this run's, and the next evaluation takes its place."""
        rows = [row for row in forget_after(step, self.file) if "weights" not in row]  # none of `evaluate --watch`
        if step == last:  # it was killed behind its last evaluation, which will be made again
            forget(self.file, lambda row: row["step"] == step and "weights" not in row)
            forget(self.folder / "metrics.jsonl", lambda row: row["step"] == step and "eval/accuracy" in row)
            rows = [row for row in rows if row["step"] != step]
        made = {row["step"]: row for row in rows}  # of several datasets the last row counts
        best = read_rows(self.folder / "best" / "evaluation.jsonl")
        return [made.get(0), best[0] if best and best[0]["step"] <= step else None, list(made.values())]

    def on_step_end(self, args, state, control, model=None, **_):
        every, step = self.spec.every, state.global_step
        last = self.spec.before_after and step == state.max_steps  # on_train_end's
        if every and step % every == 0 and not last:
            wanted = control.should_log
            try:
                self.measure(f"step {step}", model, state)
            except Abandoned:
                logger.info("the evaluation at step %d was interrupted and is not saved (run grpo-math evaluate)", step)
            else:
                self.end(state)
            control.should_log = wanted  # the evaluation's log has taken it back
            control.should_training_stop |= bool(self.ended)
            control.should_save |= bool(self.ended) and args.save_strategy != "no"

    def end(self, state: TrainerState) -> None:
        """Make the step of the last evaluation the last step of the run, where the recipe wants that."""
        if reason := why_end(self.spec, self.made):
            self.ended = f"{reason} at step {state.global_step}"
            state.max_steps = state.global_step
            if state.is_world_process_zero:
                logger.info("%s: the training ends here", self.ended)

    def on_train_end(self, args, state, control, model=None, **_):
        if args.save_strategy == "no":
            self.stopped = lambda: False  # nothing to resume from: this is the end of the run, and its model unsaved
        if self.spec.before_after and not unfinished(state):
            self.after = self.made[-1] if self.ended else self.measure("after", model, state)

    def measure(self, moment: str, model: PreTrainedModel, state: TrainerState) -> dict:
        """Evaluate, tell everyone, and return the row of eval.jsonl that counts."""
        started, spec = time.perf_counter(), self.spec
        tokenizer: Any = self.trainer.processing_class
        ends = ends_of(model.generation_config, tokenizer)
        setup = setup_of(spec, self.scoring.template, tokenizer, ends, self.longest, self.trainer.args.seed, self.tools)
        vllm = getattr(self.trainer, "vllm_generation", None)
        size = vllm.tensor_parallel_size if vllm and vllm.mode == "colocate" else 1
        rows: list[dict] = []
        seconds: dict[str, float] = {}
        with training_engine(self.trainer, model, tokenizer, spec.batch_size) as engine:
            for benchmark in self.benchmarks:
                name, title = f"{moment}: {benchmark.title}", benchmark.title
                solved, seconds[title] = solve_together(engine, benchmark, setup, size, self.stopped, name)
                rows += solved
        if self.stopped():
            raise Abandoned
        rows = score_together(self.scoring, rows, state)
        found = summarise_each(rows, seconds, state.global_step)
        if state.is_world_process_zero:
            self.keep(moment, rows, found)
        metrics = {f"eval_{name}": value for name, value in metrics_of(found).items()}  # eval/X in W&B and the others
        Trainer.log(self.trainer, metrics)  # not TRL's own, which would take the step's metrics with it
        counts = found[-1].flat()
        self.made.append(counts)
        if self.spec.best and (self.best is None or counts["accuracy_low"] > self.best["accuracy_low"]):
            self.best = counts
            best = self.folder / "best"
            save_whole(self.trainer, best, lambda folder: write_rows([counts], folder / "evaluation.jsonl"))
            if state.is_world_process_zero:
                logger.info("best model so far, in best/: step %d", counts["step"])
        self.seconds += time.perf_counter() - started
        self.count += 1
        return counts

    def ahead(self, state: TrainerState) -> float:
        """The seconds that the evaluations to come will take, by those that this process has made."""
        step, last = state.global_step, state.max_steps - self.spec.before_after  # on_train_end's comes behind it
        every = self.spec.every or state.max_steps + 1
        count = last // every - min(step, last) // every + self.spec.before_after
        return count * self.seconds / max(1, self.count) if self.benchmarks else 0.0

    def found(self) -> dict[str, Any]:
        """The evaluations there are, and why they ended the training, for results.json."""
        facts = {"before": self.before, "after": self.after, "best": self.best, "stopped": self.ended}
        return {name: fact for name, fact in facts.items() if fact}

    def keep(self, moment: str, rows: list[dict], found: list[Evaluation]) -> None:
        completions = self.folder / "completions"
        completions.mkdir(exist_ok=True)
        write_table(rows, completions / f"eval-{found[0].step:06d}.parquet")
        append_rows([evaluation.flat() for evaluation in found], self.file)
        for evaluation in found:
            line = f"{moment}: {evaluation}"
            logger.info("%s", line, extra={"console": fill(line, WIDTH, subsequent_indent="  ")})


def why_end(spec: EvalSpec, made: list[dict]) -> str:
    """`eval.stop_at 0.9` or `eval.patience 3`, where the evaluations made so far end the training, else nothing.

    Patience compares means: that no evaluation exceeds the best one happens by chance while the accuracy still rises.
    """
    if spec.stop_at is not None and made[-1]["accuracy_low"] >= spec.stop_at:
        return f"eval.stop_at {spec.stop_at:g}"
    accuracies = [row["accuracy"] for row in made[-2 * spec.patience :]] if spec.patience else []
    if spec.patience and len(accuracies) == 2 * spec.patience:
        before, last = fmean(accuracies[: spec.patience]), fmean(accuracies[spec.patience :])
        return f"eval.patience {spec.patience}" if last <= before + ROUNDING else ""
    return ""
