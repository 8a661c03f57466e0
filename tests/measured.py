"""What work costs: for comparisons within one run, never against a number of seconds."""

import time
from collections.abc import Callable


def cpu_of(work: Callable[[], object]) -> float:
    """The CPU time of *work*, in seconds: the least of five, for others use the machine too."""
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best
