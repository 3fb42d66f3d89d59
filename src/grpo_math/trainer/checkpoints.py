"""When a training saves its checkpoints, that they are complete, and what transformers leaves out when it resumes."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import reduce
from peft import get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments

from grpo_math.errors import PARENT, UserError
from grpo_math.generation import Burst, heeded
from grpo_math.models import copy_processor
from grpo_math.recipe.batch import is_main_process
from grpo_math.runs import checkpoints

logger = logging.getLogger(__name__)


def unfinished(state: TrainerState) -> bool:
    """Whether the training was stopped before its last step."""
    return state.global_step < state.max_steps


class StopOnSignal(TrainerCallback):
    """As a context: SIGTERM, Ctrl-C, SIGHUP, SIGUSR1 and SIGUSR2 have the training save a checkpoint and stop; a second
    one stops it at once. The end of `accelerate launch`, which may leave its processes behind, is such a signal too.

    All processes agree, whichever of them was told: it is enough that one was. Comes before `SaveWhole`, which decides
    when the checkpoint is saved.
    """

    def __enter__(self):
        self.wanted, self.told, self.burst = False, False, Burst()
        self.earlier = {number: signal.signal(number, self.note) for number in heeded()}
        return self

    def __exit__(self, *_):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.burst.begins():
            if self.wanted:
                self.__exit__()
                signal.raise_signal(number)
            self.wanted = True
            if is_main_process() and "GRPO_MATH_PROCESSES" not in os.environ:  # else `launch` has said it
                os.write(1, b"stopping: the step is finished and saved first (a second signal stops at once)\n")

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was told; all ask together."""
        if not self.wanted and "ACCELERATE_MIXED_PRECISION" in os.environ and os.getppid() != PARENT:
            self.wanted = True
            logger.info("stopping: accelerate launch has exited; the step is finished and saved first")
        self.told = bool(reduce(torch.tensor(float(self.wanted), device=device)))
        return self.told

    def on_step_end(self, args, state, control, **_):
        self.told = self.agreed(args.device) and unfinished(state)
        control.should_save |= self.told
        args.save_only_model &= not self.told  # else there would be nothing to resume from

    def on_save(self, args, state, control, **_):
        control.should_training_stop |= self.told


class SaveWhole(TrainerCallback):
    """Saves between two generation batches, of `every` steps each, where a resume is exact: TRL keeps the completions
    of the current one in memory alone. The step of a checkpoint is logged, so that no log spans it. A checkpoint counts
    when all processes have written theirs (runs/checkpoints.py); of the complete ones the last `limit` are kept.
    """

    def __init__(self, trainer: Trainer, every: int, limit: int | None):
        self.trainer, self.every, self.limit = trainer, every, limit

    def on_train_begin(self, args, state, control, **_):
        self.first, self.due = state.global_step, False

    def on_step_end(self, args, state, control, **_):
        between = (state.global_step - self.first) % self.every == 0 or not unfinished(state)
        wanted = control.should_save or self.due
        control.should_save, self.due = wanted and between, wanted and not between
        control.should_log |= control.should_save
        if control.should_save and state.is_world_process_zero:
            checkpoints.announce(self.folder(args, state))

    on_epoch_end = on_step_end  # save_strategy: epoch

    def on_save(self, args, state, control, **_):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            copy_processor(self.trainer.model, self.folder(args, state))
            checkpoints.completed(self.folder(args, state))
            checkpoints.thin_out(Path(args.output_dir), self.limit)
        self.trainer.accelerator.wait_for_everyone()

    @staticmethod
    def folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir or "") / f"checkpoint-{state.global_step}"


class Abandoned(Exception):
    """An evaluation that a signal has stopped."""


class NothingLeft(Exception):
    """A run that was killed between its last step and its end has nothing left to train."""


class Resume(TrainerCallback):
    """The last callback to begin: what transformers 5.17 leaves out when it resumes from a checkpoint."""

    def __init__(self, trainer: Trainer, checkpoint: Path | None):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **_):
        if not self.checkpoint:
            return
        if not unfinished(state):
            raise NothingLeft
        self.restore_adapter(model)
        if hasattr(args, "num_generations"):  # TRL's sampler draws the order of each epoch anew, from one generator
            updates = -(-len(train_dataloader) // args.gradient_accumulation_steps)
            batches = train_dataloader.batch_sampler
            sampler = getattr(batches, "batch_sampler", batches).sampler  # on several processes accelerate wraps it
            for _epoch in range(state.global_step // updates):
                next(iter(sampler))

    def restore_adapter(self, model: PreTrainedModel) -> None:
        """transformers restores the adapters in a checkpoint's folders (TRL's `ref`) but not the policy's next to them;
        FSDP and DeepSpeed restore the whole model."""
        policy = self.trainer.accelerator.unwrap_model(model)
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled or not hasattr(policy, "peft_config"):
            return
        wanted = get_peft_model_state_dict(policy, adapter_name="default", save_embedding_layers=False)
        if lacking := sorted(wanted.keys() - load_peft_weights(str(self.checkpoint), "cpu").keys()):
            raise UserError(
                f"resume_from_checkpoint: {self.checkpoint} lacks {len(lacking)} weights of the adapter "
                f"({lacking[0]}, ...): name another checkpoint"
            )
        if "ref" in policy.peft_config:
            policy.load_adapter(str(self.checkpoint), "default", is_trainable=True)
            policy.set_adapter("default")


def save_whole(trainer: Trainer, folder: Path, facts: Callable[[Path], None] = lambda written: None) -> None:
    """Save the model under this name in the run folder, with what `facts` adds to it, in one move."""
    written = folder.parent / checkpoints.ASIDE / folder.name
    trainer.save_model(str(written), _internal_call=True)  # which pushes nothing
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        (written / "training_args.bin").unlink(missing_ok=True)  # an unused pickle, with local paths
        copy_processor(trainer.model, written)
        facts(written)
        checkpoints.publish(written, folder)
    trainer.accelerator.wait_for_everyone()
