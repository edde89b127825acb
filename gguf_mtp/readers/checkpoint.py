"""A Hugging Face checkpoint directory: strict config.json, safetensors in one file or in shards."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.readers.safetensors import SafetensorsFile, read_safetensors
from gguf_mtp.readers.source import TensorRef
from gguf_mtp.readers.strict_json import read_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# What PEFT saves in place of a whole model.
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
MAX_LISTED = 5


@dataclass(frozen=True)
class Checkpoint:
    """A directory's configuration and tensors; tensors by file name, then by tensor name (the
    order in which llama.cpp's converter visits them)."""

    path: Path
    config: dict[str, Any]
    files: tuple[SafetensorsFile, ...]

    @property
    def tensors(self) -> tuple[TensorRef, ...]:
        return tuple(ref for file in self.files for ref in file.tensors)

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name`, None when there is no such file."""
        path = self.path / name
        return read_object(path) if path.exists() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read config and safetensors headers of the directory `path`.

    Raises FormatError for malformed or inconsistent files, UnsupportedError when there are no
    safetensors.
    """
    if path.is_dir() and not os.path.lexists(path / CONFIG):
        raise _no_checkpoint(path, f"no {CONFIG}")
    config = read_object(path / CONFIG)
    index_path = path / INDEX
    if index_path.exists():
        files = _read_shards(path, index_path)
    else:
        names = sorted(item.name for item in path.glob("model*.safetensors"))
        if not names:
            raise _no_checkpoint(path, "no model*.safetensors (pickled weights are not read)")
        if len(names) > 1:
            raise FormatError(
                f"{path}: {len(names)} safetensors files but no {INDEX}, which lists their "
                "tensors; add it from where the files come from"
            )
        files = (read_safetensors(path / names[0]),)
    return Checkpoint(path, config, files)


def _no_checkpoint(path: Path, what: str) -> UnsupportedError:
    """The error for a directory that is not a checkpoint. `what` says what it lacks; what it holds
    instead decides what is advised."""
    try:
        found = sorted(os.listdir(path))
    except OSError as error:
        return UnsupportedError(f"{path}: {what}, and cannot list the folder: {error.strerror}")
    adapter = [name for name in ADAPTER if name in found]
    if adapter:
        return UnsupportedError(
            f"{path}: holds an adapter ({adapter[0]}), not a whole model; merge the adapter into "
            "its base first, e.g. with PEFT's merge_and_unload, and give what that saves"
        )
    ggufs = [name for name in found if name.endswith(".gguf")]
    if ggufs:
        return UnsupportedError(f"{path}: {what}; give one of its GGUF files: {_listed(ggufs)}")
    return UnsupportedError(
        f"{path}: {what}; expected a Hugging Face checkpoint: {CONFIG} and {WEIGHTS}, or its parts "
        f"with {INDEX}; found {_listed(found) or 'an empty folder'}"
    )


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return ", ".join([*(brief(name) for name in names[:MAX_LISTED]), *more])


def _read_shards(path: Path, index_path: Path) -> tuple[SafetensorsFile, ...]:
    weight_map = read_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index_path}: weight_map is not a filled object")
    for name, shard in weight_map.items():
        # A shard is a plain file name: nothing that could lead out of the directory.
        if not isinstance(shard, str) or shard in ("", ".", "..") or "\0" in shard:
            raise FormatError(f"{index_path}: bad shard for {brief(name)}: {brief(shard)}")
        if PurePosixPath(shard).name != shard or "\\" in shard:
            raise FormatError(f"{index_path}: shard {brief(shard)} is not a plain file name")
    shards = sorted(set(weight_map.values()))
    _check_shards(path, index_path, shards)
    files = tuple(read_safetensors(path / shard) for shard in shards)
    found: dict[str, str] = {}
    for file in files:
        for ref in file.tensors:
            if ref.name in found:
                raise FormatError(f"{file.path}: tensor {ref.name!a} is also in {found[ref.name]}")
            found[ref.name] = file.path.name
    for name, shard in weight_map.items():
        if found.get(name) != shard:
            where = f"is in {found[name]}" if name in found else "is in no shard"
            raise FormatError(
                f"{index_path}: tensor {name!a} is mapped to {shard}, but {where}: index and "
                "shards are not of one save; download or save all of them again"
            )
    for name, shard in found.items():
        if name not in weight_map:
            raise FormatError(f"{path / shard}: tensor {name!a} is not in {INDEX}")
    return files


def _check_shards(path: Path, index_path: Path, shards: list[str]) -> None:
    """Raise FormatError unless the `shards` of an index are there and no other weights are."""
    absent = [shard for shard in shards if not os.path.lexists(path / shard)]
    is_whole = WEIGHTS not in shards and (path / WEIGHTS).exists()
    if absent and is_whole:
        raise FormatError(
            f"{index_path}: is stale: it names {brief(absent[0])}, which is not there, and the "
            f"weights are in {WEIGHTS}; delete {INDEX}"
        )
    if absent:
        raise FormatError(
            f"{index_path}: {len(absent)} of {len(shards)} shards are missing, first: "
            f"{brief(absent[0])}; download what is missing"
        )
    if is_whole:
        raise FormatError(
            f"{path}: has {WEIGHTS} and also the shards that {INDEX} names; delete what is out of "
            "date, the file or the index with its shards"
        )
