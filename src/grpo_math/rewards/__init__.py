"""From the recipe's `rewards:` to the functions that TRL calls.

Enters: `RewardSpec`s and the prompt template. Leaves: `Reward`s, one score per completion, checked, gated and scaled,
and the paths of reward models. Imports errors, grading and data, and nothing heavy.
"""

from grpo_math.rewards.library import LIMITS, REWARDS
from grpo_math.rewards.reward import (
    Reward,
    RewardSpec,
    build_rewards,
    call_arguments,
    data_columns,
    for_trl,
    graded_names,
    grades_of,
    is_column,
    settings,
)

__all__ = [
    "LIMITS", "REWARDS", "Reward", "RewardSpec", "build_rewards", "call_arguments", "data_columns", "for_trl",
    "graded_names", "grades_of", "is_column", "settings",
]  # fmt: skip
