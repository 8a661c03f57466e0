"""The store that a command works on."""

import click

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.store import Store
from bedrock_proxy_adapters.config import Settings, open_store, store_path
from bedrock_proxy_adapters.stores.memory import MemoryStore


def existing_store(url: str | None = None) -> Store:
    """
    The store that *url* names (the environment where None), which is there already: a
    command that looks something up must not make an empty database in the wrong folder.

    Raises:
        ConfigurationError: It is not there, or cannot be opened.
    """
    url = Settings.from_env().store if url is None else url
    path = store_path(url)
    if path is not None and path.parent.is_dir() and not path.exists():
        raise ConfigurationError(
            f"There is no database at {path}. `bedrock-proxy customers create` and "
            "`bedrock-proxy serve` make one; set BEDROCK_PROXY_STORE to what the server has."
        )
    return lasting_store(url)


def lasting_store(url: str) -> Store:
    """
    The store that *url* names; made if it is not there, and closed when the command ends.

    Raises:
        ConfigurationError: It cannot be opened, or would be gone when the command ends.
    """
    if url == "memory:":
        raise ConfigurationError(
            "BEDROCK_PROXY_STORE is memory:, which nothing outlives; name a database, for "
            "example sqlite:///bedrock-proxy.db."
        )
    store = open_store(url)
    click.get_current_context().call_on_close(store.close)
    return store


def target_store(url: str, *, dry_run: bool) -> Store:
    """
    The store that *url* names, to be written to; in a dry run, an empty one in memory stands
    for a database that is not there.

    Raises:
        ConfigurationError: As :func:`lasting_store`.
    """
    path = store_path(url)
    if dry_run and path is not None and not path.exists():
        return MemoryStore()
    return lasting_store(url)
