"""TRL's trainers with what a run here adds: exact resume, complete checkpoints, metrics, evaluations, alarms, progress.

Enters: TRL's config, built from a recipe (config.py), problems, rewards, benchmarks. Leaves: a trained policy and the
files of its run folder. May import every room to its left; what it overrides or patches in TRL is listed in compat.py.
"""
