"""Only for tests: a recipe's own reward, whose file the trainer imports before it builds anything."""

from cpu_store import use_in_trainer

use_in_trainer()


def rare(completions, completion_ids, **_):
    return [float(sum(ids) % 7 == 0) for ids in completion_ids]
