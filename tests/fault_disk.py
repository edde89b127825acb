"""A small tmpfs of its own for tests: one that fills up, and one that can be made read-only."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from faults import FaultServer

# In a mount namespace, which goes when its last process does: nothing stays mounted.
MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
PAGE = 4096


class SmallDisk(FaultServer):
    """Runs verbs beside a tmpfs of `nbytes`, which the tests see at `root`.

    Skips the test where file systems cannot be mounted.
    """

    def __init__(self, scratch: Path, nbytes: int) -> None:
        self.mount_point = scratch / "disk"
        self.mount_point.mkdir()
        self.options = f"size={nbytes},mode=755"
        unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        within = [*unshare, "sh", "-c", MOUNT, "sh", self.options, str(self.mount_point)]
        if shutil.which("unshare") is None:
            pytest.skip("there is no unshare(1)")
        probe = subprocess.run([*within, "true"], capture_output=True, text=True)
        if probe.returncode:
            pytest.skip(f"no file system may be mounted: {probe.stderr.strip()}")
        super().__init__(scratch, within=within)
        self.root = Path(f"/proc/{self.process.pid}/root{self.mount_point}")
        assert self.run(["--version"], scratch).code == 0  # it is mounted
        assert os.statvfs(self.root).f_blocks * PAGE == nbytes

    def seen(self, argument: object) -> str:
        """Paths below `root` are what they are for the verb."""
        if not hasattr(self, "root"):
            return str(argument)
        return str(argument).replace(str(self.root), str(self.mount_point))

    def remount(self, option: str) -> None:
        """``ro`` or ``rw``."""
        pid = str(self.process.pid)
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        command = ["nsenter", "--target", pid, *user, "--mount", "mount", "-o"]
        command += [f"remount,{option},{self.options}", str(self.mount_point)]
        subprocess.run(command, check=True)

    def leave(self, nbytes: int) -> Path:
        """Fill the disk but for `nbytes`; returns the file that does it."""
        path = self.root / "filler"
        room = os.statvfs(self.root).f_bavail * PAGE - nbytes
        path.write_bytes(bytes(room))
        assert os.statvfs(self.root).f_bavail * PAGE == nbytes // PAGE * PAGE
        return path
