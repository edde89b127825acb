"""Files of other kinds that people give in place of heads: what each is, and what to give instead.

Source: the ZIP specification (PKWARE APPNOTE), section 4.3.7.
"""

# How a file begins -> what it is and the way out, after "NAME: is ".
OTHER_FILES = (
    (
        b"PK",
        "a zip archive, as MediaPipe's .task bundles and PyTorch's pickled weights are, and is not "
        "read; give the .litertlm package, or the drafter as .tflite, safetensors or GGUF",
    ),
)


def other_file(start: bytes) -> str | None:
    """What a file that begins with `start` is, in words, None where it is none of these."""
    return next((what for magic, what in OTHER_FILES if start.startswith(magic)), None)
