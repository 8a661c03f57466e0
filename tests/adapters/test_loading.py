"""What a program loads for good is not the collector's any more; the collector goes on."""

import gc
import subprocess
import sys

import pytest

from bedrock_proxy_adapters.loading import for_good

APART = """
import gc
from bedrock_proxy_adapters.loading import for_good
with for_good():
    assert not gc.isenabled()
    kept = [[] for _ in range(50_000)]
assert gc.isenabled()
assert gc.get_freeze_count() > 50_000
later = [[] for _ in range(100)]
assert not any(item is each for item in gc.get_objects() for each in kept[:9])
assert any(item is later for item in gc.get_objects())
"""


def test_what_was_loaded_is_not_walked_again() -> None:
    # In a process of its own: what is frozen here would stay so for all the tests.
    subprocess.run([sys.executable, "-c", APART], check=True, timeout=60)


def test_the_collector_goes_on_after_a_failure_too() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(LookupError), for_good():
        raise LookupError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
