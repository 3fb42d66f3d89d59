"""Print what the project requires and this Python lacks, one requirement a line; the exit status is 1 then.

usage: PYTHON scripts/missing.py

Needs the standard library alone. It looks at requirements of requirements too, but not at those of torch: its CUDA
libraries often come from elsewhere. Another version than the project requires is a warning on stderr.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    Requirement = None  # then one of those missing; no markers and no versions can be read


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (any Python may be tried)
        print("Python 3.11 or later")
        return 1
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, seen, missing = [(line, "") for line in project["dependencies"]], set(), []
    while waiting:
        line, wanted_by = waiting.pop(0)
        name, version_fits = read(line)
        if name is None or name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.append(line.partition(";")[0].strip() + wanted_by)
            continue
        if not wanted_by and not version_fits(found.version):
            print(f"warning: {name} {found.version} is installed, the project requires {line}", file=sys.stderr)
        waiting += [(one, f" for {name}") for one in found.requires or [] if name != "torch"]
    print(*missing, sep="\n", end="\n" if missing else "")
    return bool(missing)


def read(line: str):
    """A requirement's canonical name, None where it does not apply here, and whether a version satisfies it."""
    name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
    if Requirement is None:
        return None if ";" in line else name, lambda version: True
    wanted = Requirement(line)
    applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    return name if applies else None, lambda version: wanted.specifier.contains(version, prereleases=True)


if __name__ == "__main__":
    sys.exit(main())
