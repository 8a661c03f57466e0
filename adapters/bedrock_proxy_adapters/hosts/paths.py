"""Request paths as hosts hand them over, brought below the prefix they are mounted at."""

from urllib.parse import unquote_to_bytes


def below(path: str, *prefixes: str) -> str:
    """*path* without each of *prefixes* that it begins with, in order; at least ``/``."""
    for prefix in prefixes:
        stripped = prefix.rstrip("/")
        if stripped and (path == stripped or path.startswith(stripped + "/")):
            path = path[len(stripped) :] or "/"
    return path


def below_encoded(path: str, *prefixes: str) -> str:
    """
    :func:`below` for a path as it came, while whoever mounted us says *prefixes* decoded. What
    remains is as it came: an encoded slash of a model's id must not become a path's.

    Args:
        path: Percent-encoded, its bytes as latin-1.
        prefixes: Text; one that was written as it comes on the wire is found, too.
    """
    for prefix in prefixes:
        if not prefix:
            continue
        rest = below(path, prefix)
        if rest is path and ("%" in path or not path.isascii()):
            rest = path[_end_of(prefix.rstrip("/"), path) :] or "/"
        path = rest
    return path


def _end_of(prefix: str, path: str) -> int:
    """Where *prefix*, decoded, ends in *path*; 0 where that does not begin with it."""
    end = 0
    # Each slash of the path is one of the prefix, which may have more of them: encoded ones.
    for _ in range(prefix.count("/")):
        end = path.find("/", end + 1)
        head = path if end < 0 else path[:end]
        if _decoded(head) == prefix:
            return len(head)
        if end < 0:
            break
    return 0


def _decoded(path: str) -> str:
    """As servers decode it."""
    return unquote_to_bytes(path.encode("latin-1", "replace")).decode("utf-8", "replace")
