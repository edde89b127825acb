"""A large file into the client's cache, so that a killed run's bytes are not fetched again.

huggingface_hub resumes within one call only: it gives every download a temporary file of its own.
Here the partial file is named by the hash of the whole, and stays.
"""

import importlib
import os
from pathlib import Path

from gguf_mtp.hub.verified import Expected


def transfer(url: str, folder: Path, expected: Expected, name: str) -> None:
    """Put the file at `url` where the client looks for it: ``blobs/<sha256>`` in the repository's
    `folder`. Nothing is done for a file without a stated size and SHA-256: those are small.

    `name` is shown with the progress. Raises what the client raises, and OSError; what arrived
    stays for the next call.
    """
    if expected.size is None or expected.sha256 is None:
        return
    blob = folder / "blobs" / expected.sha256
    partial = blob.with_name(f"{blob.name}.gguf-mtp.incomplete")
    # Where the client has its own locks, made with what it depends on.
    locks = folder.parent / ".locks" / folder.name
    for directory in (blob.parent, locks):
        directory.mkdir(parents=True, exist_ok=True)
    with importlib.import_module("filelock").FileLock(locks / f"{partial.name}.lock"):
        if blob.exists():
            return
        with partial.open("ab") as file:
            if file.tell() > expected.size:
                file.truncate(0)
            importlib.import_module("huggingface_hub.file_download").http_get(
                url,
                file,
                resume_size=os.fstat(file.fileno()).st_size,
                headers=importlib.import_module("huggingface_hub.utils").build_hf_headers(),
                expected_size=expected.size,
                displayed_filename=name,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, blob)
