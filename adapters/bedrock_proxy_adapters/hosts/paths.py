"""Request paths as hosts hand them over, brought below the prefix they are mounted at."""


def below(path: str, *prefixes: str) -> str:
    """*path* without each of *prefixes* that it begins with, in order; at least ``/``."""
    for prefix in prefixes:
        stripped = prefix.rstrip("/")
        if stripped and (path == stripped or path.startswith(stripped + "/")):
            path = path[len(stripped) :] or "/"
    return path
