"""Names that must not repeat, told in one pass however many there are."""

from collections.abc import Iterable


def first_repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that was there before, None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
