"""The exceptions this package raises; each message is one line that names the thing.

::

    GgufMtpError              anything the command line reports as ``error: …`` (exit code 2)
    ├── FormatError           a file's bytes break its format (truncated, overlapping, bad type …)
    ├── UnsupportedError      a well-formed input that this version does not handle
    ├── PairingError          base and heads do not belong together
    ├── OutputError           the output cannot be written (exists, is a directory, disk full …)
    ├── FetchError            a source cannot be fetched from the hub (no access, no network …)
    └── RuntimeUnavailable    no usable llama.cpp library, or it failed to load or run a model
"""

MAX_VALUE = 80
MAX_MESSAGE = 1200


def brief(value: object) -> str:
    """`value` for a message: as Python writes it, in ASCII, cut to 80 characters."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


class GgufMtpError(Exception):
    """Base class; ``str()`` of any instance is one line fit for a terminal.

    Messages hold names out of files: what is not printable becomes escapes, and of more than 1200
    characters the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            half = MAX_MESSAGE // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        if not message.isprintable():
            message = "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in message
            )
        super().__init__(message)


class FormatError(GgufMtpError):
    """A file's bytes break its format. Names file, field, found value and what was expected."""


class UnsupportedError(GgufMtpError):
    """A well-formed input that this version does not handle."""


class PairingError(GgufMtpError):
    """Base and heads do not belong together. Names the property, expected and found."""


class OutputError(GgufMtpError):
    """The output path cannot be written, or writing it failed."""


class FetchError(GgufMtpError):
    """A source cannot be fetched, or what arrived is not what the hub says. Names the source."""


class RuntimeUnavailable(GgufMtpError):
    """No usable llama.cpp library, or it failed to load or run a model."""
