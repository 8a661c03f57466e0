"""
The values that are made by the hundred for one request, or by the thousand for one stream.

A value of this project is a frozen attrs class. To fill one, attrs goes around its own guard
against assignments, which costs more than all else about a small value. So those that every
request makes are :func:`lean` classes, which only the type checkers freeze. Those that a flow
makes for every piece it reads, effects and parts, are written out: attrs compiles the methods
of each class when it is imported, which a cold start waits for. Both are no less values:
nobody changes one.
"""

from typing import TYPE_CHECKING

__all__ = ["Slotted", "lean"]

if TYPE_CHECKING:
    from attrs import frozen as lean
else:
    from attrs import define

    def lean(cls=None, **options):
        """Like ``attrs.frozen``, for type checkers; at run time the slots are plain ones."""
        return define(cls, unsafe_hash=True, **options)


class Slotted:
    """A value whose slots are its fields: equal to one of its own class that holds the same."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.__slots__)))

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__qualname__}({said})"
