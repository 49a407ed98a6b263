"""Starting an unpacked package the way its user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_sh(package: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "VITPRUNE_PYTHON": sys.executable, **environment}
    variables.pop("PYTHONPATH", None) if "PYTHONPATH" not in environment else None
    return subprocess.run([str(package / "run.sh"), *arguments], capture_output=True, text=True, check=False, env=variables)
