"""One running proxy for each host, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest
from tests.running import Running, on_gunicorn, on_uvicorn


@pytest.fixture(scope="session")
def uvicorn_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with on_uvicorn(tmp_path_factory.mktemp("uvicorn")) as running:
        yield running


@pytest.fixture(scope="session")
def gunicorn_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with on_gunicorn(tmp_path_factory.mktemp("gunicorn")) as running:
        yield running


@pytest.fixture(params=["uvicorn", "gunicorn"])
def host(request: pytest.FixtureRequest) -> Running:
    running: Running = request.getfixturevalue(f"{request.param}_host")
    running.simulator.reset()
    running.simulator.default(None)
    return running
