"""Every benchmark, one after the other: what ``make bench`` runs."""

import subprocess
import sys
from pathlib import Path

for module in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"--- {module.stem}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{module.stem}"], check=True)
