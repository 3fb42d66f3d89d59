"""Only for tests: a recipe's own reward, whose file the trainer imports before it builds anything."""

from cpu_store import use_in_trainer

use_in_trainer()


def length(completions, completion_ids, **_):
    return [sum(ids) % 7 / 7 for ids in completion_ids]
