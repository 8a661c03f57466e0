"""
The pytest fixture ``bedrock_simulator``.

Name this module in ``pytest_plugins`` of your top-level conftest.py, or give it to
``pytest -p``.
"""

from collections.abc import Iterator

import pytest

from bedrock_proxy_adapters.simulator.running import RunningSimulator, start_in_thread


@pytest.fixture
def bedrock_simulator() -> Iterator[RunningSimulator]:
    """A fake Bedrock Runtime on a free loopback port, fresh for each test."""
    with start_in_thread() as simulator:
        yield simulator
