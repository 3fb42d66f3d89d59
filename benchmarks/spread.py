"""How the tables here show several measurements of one thing."""

import statistics


def spread(values: list[float], form: str = ".3f") -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"
