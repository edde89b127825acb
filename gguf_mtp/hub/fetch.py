"""Fetching what is needed of a repository into the hub client's own cache.

huggingface_hub does the transfers: tokens, proxies, mirrors (``HF_ENDPOINT``) and the
cache (``HF_HOME``) are as in every program that uses it. Here it is told which files, and what
arrived is compared with the hub's sizes and hashes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FetchError, UnsupportedError
from gguf_mtp.hub import select
from gguf_mtp.hub.folder import Found, in_folder
from gguf_mtp.hub.listing import COMMIT, Listing, listing
from gguf_mtp.hub.reference import SCHEME, Reference, parse
from gguf_mtp.hub.transfer import transfer
from gguf_mtp.hub.verified import Expected, check
from gguf_mtp.readers.checkpoint import INDEX
from gguf_mtp.readers.strict_json import read_object

LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def local_path(source: str | Path, role: str, *, quiet: bool = True) -> Path:
    """Where `source` is on this machine, fetched from the hub if that is what it names.

    What exists as a path is that path, or the file in that folder. `role` is one of `choose.ROLES`:
    which of a repository's or folder's files will do. Unless `quiet`, the file that was chosen is
    said on stderr. Raises FetchError, and UnsupportedError for a folder without such a file, or
    without huggingface_hub.
    """
    if isinstance(source, Path) or (not source.startswith(SCHEME) and os.path.lexists(source)):
        found = in_folder(Path(source), role)
    else:
        reference = parse(source)
        if reference is None:
            return Path(source)
        found = fetch(reference, role, source, quiet=quiet)
    if not quiet and found.chosen:
        line = f"note: {source}: using {found.chosen}"
        print(line if line.isprintable() else ascii(line), file=sys.stderr)
    return found.path


def fetch(reference: Reference, role: str, source: str, *, quiet: bool) -> Found:
    """The directory of a checkpoint, or the file, that `reference` names, with all of its files
    present. `source` is what the user wrote. Raises as `local_path`."""
    repository = _Repository(_client(source), reference, source, quiet=quiet)
    try:
        return _fetch(repository, role)
    except FetchError as error:
        if repository.offline:
            raise FetchError(f"{error} ({repository.offline}: only the cache was seen)") from None
        raise


def _fetch(repository: _Repository, role: str) -> Found:
    reference, names = repository.reference, list(repository.files)
    if reference.file is not None:
        wanted = select.one_file(reference, names)
        chosen = ""
    elif not select.is_checkpoint(reference, names, role):
        wanted = select.only_model(reference, names, role)
        chosen = wanted[0]
    else:
        paths = repository.get(select.checkpoint_files(names))
        index = paths.get(INDEX)
        weight_map = None if index is None else read_object(index).get("weight_map", {})
        repository.get(select.weights(reference, names, weight_map))
        return Found(paths[select.CONFIG].parent)
    with_them = select.companions(names, wanted[0])
    return Found(repository.get([*wanted, *with_them])[wanted[0]], chosen)


def _client(source: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        missing = "" if source.startswith(SCHEME) else "no such file or directory; "
        raise UnsupportedError(
            f"{source}: {missing}to fetch from the Hugging Face hub: pip install 'gguf-mtp[hub]'"
        ) from None


class _Repository:
    """A repository at one commit."""

    def __init__(self, client: Any, reference: Reference, source: str, *, quiet: bool) -> None:
        self.client = client
        self.errors = importlib.import_module("huggingface_hub.errors")
        self.reference = reference
        self.source = source
        # By name: huggingface_hub has its modules as attributes only after something imported them.
        constants = importlib.import_module("huggingface_hub.constants")
        self.endpoint = os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)
        self.cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
        self.folder = self.cache / f"models--{self.reference.repo.replace('/', '--')}"
        self.bars = not quiet and sys.stderr.isatty()
        self.offline = ""  # why the hub could not be asked
        self._listing = self._list()
        self.files = self._listing.files

    def _list(self) -> Listing:
        api = self.client.HfApi(endpoint=self.endpoint)
        try:
            info = api.model_info(
                self.reference.repo, revision=self.reference.revision, files_metadata=True
            )
        except (self.errors.HfHubHTTPError, self.errors.HFValidationError) as error:
            raise self._explained(error) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise FetchError(
                f"{self.source}: unexpected response from {self.endpoint}, not a file "
                f"list ({type(error).__name__}: {_line(error)})"
            ) from None
        except Exception as error:  # offline, or one of the client's transport errors
            cached = self._cached()
            if cached is None:
                raise FetchError(
                    f"{self.source}: cannot reach {self.endpoint} ({_line(error)}), and it is not "
                    f"in the cache, {self.cache}"
                ) from None
            self.offline = f"cannot reach {self.endpoint}"
            return cached
        return listing(info, f"{self.source}: {self.endpoint}")

    def _cached(self) -> Listing | None:
        """What an earlier run left of the revision."""
        commit = self.reference.revision or "main"
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self.folder / "refs" / commit).read_text("utf-8").strip()
            except (OSError, ValueError):
                return None
        snapshot = self.folder / "snapshots" / commit
        if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
            return None
        paths = (path for path in sorted(snapshot.rglob("*")) if path.is_file())
        files = {path.relative_to(snapshot).as_posix(): Expected() for path in paths}
        return Listing(commit, files, snapshot)

    def get(self, names: list[str]) -> dict[str, Path]:
        """The local paths of `names`, fetched where they are not here yet, and compared with
        what the hub says of them. Raises FetchError."""
        if self._listing.snapshot is not None:
            return {name: self._listing.snapshot / name for name in names}
        self._check_space(names)
        set_bars = importlib.import_module("huggingface_hub.utils")
        (set_bars.enable_progress_bars if self.bars else set_bars.disable_progress_bars)()
        found = {}
        for at, name in enumerate(names):
            if at == 0 and self.reference.revision != self._listing.commit:
                # By the name asked for: that makes the cache know the revision when offline.
                self._download(name, self.reference.revision)
            path = self._download(name, self._listing.commit)
            check(path, self.files[name], f"{self.reference.repo}/{name}")
            found[name] = path
        return found

    def _download(self, name: str, revision: str | None) -> Path:
        url = self.client.hf_hub_url(
            self.reference.repo, name, revision=self._listing.commit, endpoint=self.endpoint
        )
        try:
            # Without symbolic links (Windows) files are in the snapshot, and not under their hash.
            if not (self.folder / "snapshots" / self._listing.commit / name).exists():
                transfer(url, self.folder, self.files[name], name)
            return Path(
                self.client.hf_hub_download(
                    self.reference.repo,
                    name,
                    revision=revision,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                )
            )
        except (self.errors.HfHubHTTPError, ValueError) as error:
            raise self._explained(error) from None
        except Exception as error:  # the client's transport errors have no common class
            raise FetchError(
                f"{self.reference.repo}/{name}: the download failed ({_line(error)}); the bytes "
                f"received are kept, run this again to continue"
            ) from None

    def _check_space(self, names: list[str]) -> None:
        snapshot = self.folder / "snapshots" / self._listing.commit
        missing = [name for name in names if not (snapshot / name).exists()]
        needed = sum(self.files[name].size or 0 for name in missing)
        place = next(p for p in (self.cache, *self.cache.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise FetchError(
                f"{self.source}: {needed:,} bytes to fetch, {free:,} free in {self.cache} "
                f"(HF_HOME moves it)"
            )

    def _explained(self, error: Exception) -> FetchError:
        """One line that says what to do."""
        known, repo = self.errors, self.reference.repo
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, known.GatedRepoError):
            text = f"access to {repo} is gated: accept its terms on its page, and {LOGIN}"
        elif isinstance(error, known.RepositoryNotFoundError):
            text = f"no repository {repo} at {self.endpoint}, or a private one: {LOGIN}"
        elif isinstance(error, known.RevisionNotFoundError):
            text = f"{repo} has no revision {self.reference.revision or 'main'}"
        elif status in (401, 403):
            text = f"{self.endpoint} refuses access to {repo} ({status}): {LOGIN}"
        else:
            text = _line(error)
        here = "" if self.source.startswith(SCHEME) else "no such path here; "
        return FetchError(f"{self.source}: {here}{text}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
