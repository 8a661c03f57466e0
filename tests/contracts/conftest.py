"""Every test that asks for a store runs once for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.factories import FACTORIES, RUNNER, THREADED, StoreFactory


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> StoreFactory:
    return request.param


@pytest.fixture
def store(factory: StoreFactory, tmp_path: Path) -> Iterator[Any]:
    made = factory.make(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=THREADED, ids=lambda factory: factory.name)
def threaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = request.param.make(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def close_the_loop() -> Iterator[None]:
    yield
    RUNNER.close()
