"""A benchmark's own callback in the trainings that grpo_math.train makes."""

from collections.abc import Callable


def watch(callback: Callable) -> None:
    """From now on every training adds what `callback` makes of its trainer."""
    from grpo_math.trainer import loop

    plain = loop.run

    def run(trainer, *rest):
        trainer.add_callback(callback(trainer))
        return plain(trainer, *rest)

    loop.run = run
