"""The checks of a recipe before its model is loaded.

A recipe on its layout (`Subject`) enters, findings leave: errors, warnings and notes, each with the line to change.
One file per subject, one table, `CHECKS`. May import every room to its left (grading to trainer); what a launch adds to
a recipe is given to it.
"""

from grpo_math.checks.findings import Finding, Subject
from grpo_math.checks.preflight import CHECKS, check_training, report, run_checks

__all__ = ["CHECKS", "Finding", "Subject", "check_training", "report", "run_checks"]
