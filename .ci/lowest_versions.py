"""Prints ``name==version`` for the lowest version of each dependency that pyproject.toml allows.

Torch is left out: its oldest allowed release has no CPU build on the package index for every
Python, and the CUDA build is several gigabytes.
"""

import re
import tomllib
from pathlib import Path

LEFT_OUT = {"torch"}

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in project["dependencies"] + extras["lora"]:
    name, lowest = re.match(r"([\w.-]+)(?:\[\w+\])?(?:.*?>=([\d.]+))?", requirement).groups()
    if lowest and name not in LEFT_OUT:
        print(f"{name}=={lowest}")
