"""The run folder: who may write to it, its files, its checkpoints. Nothing here knows models or trainers.

Enters: paths, rows, settings as plain values. Leaves: rows, facts, the checkpoint to resume from. Imports errors and
recipe alone (the arithmetic of processes, YAML).
"""
