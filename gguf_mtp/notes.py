"""What a user should be told although it stops nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """A remark: `code` for machines, `message`, one line, for people."""

    code: str
    message: str
