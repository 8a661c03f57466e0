"""
What the values written out by hand have in common.

A value of this project is a frozen attrs class. Those that a flow makes for every piece it
reads, effects and parts, are written out instead: attrs compiles the methods of each class
when it is imported, which a cold start waits for, and a plain assignment is the faster way to
fill a slot. They are no less values: nobody changes one.
"""


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
