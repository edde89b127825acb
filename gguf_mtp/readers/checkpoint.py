"""A Hugging Face checkpoint directory: strict config.json, safetensors in one file or in shards."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError, brief
from gguf_mtp.readers.safetensors import SafetensorsFile, read_safetensors
from gguf_mtp.readers.source import TensorRef
from gguf_mtp.readers.strict_json import read_object

INDEX = "model.safetensors.index.json"


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
    config = read_object(path / "config.json")
    index_path = path / INDEX
    if index_path.exists():
        files = _read_shards(path, index_path)
    else:
        names = sorted(item.name for item in path.glob("model*.safetensors"))
        if not names:
            raise UnsupportedError(f"{path}: no model*.safetensors (pickled weights are not read)")
        if len(names) > 1:
            raise FormatError(f"{path}: {len(names)} safetensors files but no {INDEX}")
        files = (read_safetensors(path / names[0]),)
    return Checkpoint(path, config, files)


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
    files = tuple(read_safetensors(path / shard) for shard in sorted(set(weight_map.values())))
    found: dict[str, str] = {}
    for file in files:
        for ref in file.tensors:
            if ref.name in found:
                raise FormatError(f"{file.path}: tensor {ref.name!a} is also in {found[ref.name]}")
            found[ref.name] = file.path.name
    for name, shard in weight_map.items():
        if found.get(name) != shard:
            where = f"is in {found[name]}" if name in found else "is in no shard"
            raise FormatError(f"{index_path}: tensor {name!a} is mapped to {shard}, but {where}")
    for name, shard in found.items():
        if name not in weight_map:
            raise FormatError(f"{path / shard}: tensor {name!a} is not in {INDEX}")
    return files
