"""A base for what holds a handle: `with` closes it."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")  # typing.Self is newer than the oldest Python supported


class Closing(ABC):
    """Has a `close`; leaving a ``with`` block calls it."""

    @abstractmethod
    def close(self) -> None:
        """Release the handle."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
