"""Print what a wheel requires, one requirement a line, without torch and its sisters (they are installed already).

usage: python scripts/wheel_requirements.py FILE.whl
"""

import sys
from email.parser import Parser
from zipfile import ZipFile

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")

with ZipFile(sys.argv[1]) as wheel:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    for line in Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist"):
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name not in LEFT_OUT:
            print(requirement)
