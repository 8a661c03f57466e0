"""
An update of one item, in DynamoDB's own expressions.
"""

from typing import Any


class Update:
    """An update of one item, being written."""

    def __init__(self) -> None:
        self._set: list[str] = []
        self._remove: list[str] = []
        self._conditions: list[str] = []
        self._names: dict[str, str] = {}
        self._values: dict[str, dict[str, Any]] = {}

    def number(self, name: str, value: int) -> str:
        """A placeholder for a number."""
        self._values[f":{name}"] = {"N": str(value)}
        return f":{name}"

    def binary(self, name: str, value: bytes) -> str:
        """A placeholder for bytes."""
        self._values[f":{name}"] = {"B": value}
        return f":{name}"

    def entry(self, placeholder: str, name: str) -> str:
        """The path of a lease or an adjustment."""
        self._names[f"#{placeholder}"] = name
        return f"L.#{placeholder}"

    def put(self, path: str, value: str) -> None:
        """Set an attribute."""
        self._set.append(f"{path} = {value}")

    def add(self, path: str, name: str, value: int) -> None:
        """Add to a number."""
        if value:
            sign = "+" if value > 0 else "-"
            self.put(path, f"{path} {sign} {self.number(name, abs(value))}")

    def drop(self, path: str) -> None:
        """Remove an entry."""
        self._remove.append(path)

    def when(self, condition: str) -> None:
        """Only if this too is so."""
        self._conditions.append(condition)

    def parameters(self) -> dict[str, Any]:
        """What ``update_item`` takes."""
        expression = f"SET {', '.join(self._set)}" if self._set else ""
        if self._remove:
            expression += f" REMOVE {', '.join(self._remove)}"
        found: dict[str, Any] = {
            "UpdateExpression": expression.strip(),
            "ConditionExpression": " AND ".join(self._conditions),
        }
        if self._names:
            found["ExpressionAttributeNames"] = self._names
        if self._values:
            found["ExpressionAttributeValues"] = self._values
        return found
