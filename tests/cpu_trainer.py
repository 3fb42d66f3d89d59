"""Only for tests: a recipe's own reward, whose file the trainer imports before it builds anything."""

from cpu_store import use_in_trainer

use_in_trainer()


def reward(completions, completion_ids, **_):
    """Different completions, different rewards."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]
