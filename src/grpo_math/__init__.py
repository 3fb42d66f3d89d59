"""GRPO on math problems: one recipe, one command."""

__version__ = "0.1.0"
