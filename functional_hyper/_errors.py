"""The library's error types and the one form of an error message."""

from __future__ import annotations

from typing import TypeVar


class HyperError(ValueError):
    """Bad input, found at the door: names the call, what was expected, what came, and the mend."""


class Refused(HyperError):
    """A path cannot evaluate this main network rightly, and says so instead of returning a number."""


class Hidden(Refused):
    """A transform inside the main network took hold of a weight that exists only as factors."""


E = TypeVar("E", bound=HyperError)


def bad(call: str, expected: object, got: object, mend: str, kind: type[E] = HyperError) -> E:
    """The error, ready to raise: `` `call` expected ..., got ...; mend ``."""
    return kind(f"`{call}` expected {expected}, got {got}; {mend}")


def listed(names: object, most: int = 8) -> str:
    """Names for a message: the first few, then how many more."""
    names = list(names)  # type: ignore[call-overload]
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
