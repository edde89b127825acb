"""Models and contexts of llama.cpp with explicit lifetimes, over the low-level bindings."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_mtp.closing import Closing
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.library import Library
from gguf_mtp.runtime.placement import Placement, placement
from gguf_mtp.runtime.sound import require_sound

Row = npt.NDArray[np.float32]

# enum ggml_type (ggml.h), those llama.cpp accepts for the KV cache
KV_TYPES = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7,
    "iq4_nl": 20,
}  # fmt: skip
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
CONTEXT_TYPE_MTP = 1  # enum llama_context_type
FTYPE_ALL_F32 = 0  # enum llama_ftype

# Output rows one decode may ask for. llama.cpp reserves n_outputs x n_vocab floats.
MAX_OUTPUTS = 32
ALL_LAYERS = 0x7FFFFFFF
CPU = "cpu"  # instead of devices' names: everything stays there


def half_the_cpus() -> int:
    """The threads that decoding gets where none are named."""
    return max(1, (os.cpu_count() or 1) // 2)


@dataclass(frozen=True)
class ModelOptions:
    """How weights are loaded: layers to offload (-1: all), device names, repacked CPU buffers."""

    gpu_layers: int = -1
    device: str | None = None  # names between commas, or CPU; None: all the library has
    repack: bool = True


@dataclass(frozen=True)
class ContextOptions:
    """How a context computes: its length in tokens, threads, KV cache type, flash attention."""

    n_ctx: int
    n_threads: int = 1
    n_batch: int = 512
    kv_type: str = "f16"
    flash_attn: str = "auto"


class Model(Closing):
    """A loaded model; use as a context manager, or `close` it after its contexts."""

    def __init__(self, library: Library, address: Any, path: Path, options: ModelOptions) -> None:
        self.library = library
        self.path = path
        self.options = options
        self._address: Any = address
        self.placement: Placement = placement(library.log.lines(), "model")
        api = library.api
        self._vocab = api.llama_model_get_vocab(address)
        self.n_vocab = int(api.llama_vocab_n_tokens(self._vocab))
        self.n_embd_out = int(api.llama_model_n_embd_out(address))
        self.n_ctx_train = int(api.llama_model_n_ctx_train(address))
        self.n_swa = int(api.llama_model_n_swa(address))  # the sliding window, 0 without one

    @classmethod
    def open(cls, library: Library, path: Path, options: ModelOptions) -> Model:
        """Load a GGUF as an ordinary model.

        Raises RuntimeUnavailable with llama.cpp's reason, and as `require_sound`.
        """
        return cls._open(library, path, options, heads=False)

    @classmethod
    def open_heads(cls, library: Library, path: Path, options: ModelOptions) -> Model:
        """Load the MTP heads inside a merged file (patched library only)."""
        return cls._open(library, path, options, heads=True)

    @classmethod
    def open_at(cls, library: Library, path: Path, offset: int, options: ModelOptions) -> Model:
        """Load the GGUF that begins at byte `offset` of a file (any library)."""
        require_sound(path)
        params, _keep_alive = _model_params(library, options)
        library.log.clear()
        with _c_file(path, offset) as file:
            address = library.api.llama_model_load_from_file_ptr(file, params)
        if not address:
            raise library.failure(f"{path}: llama.cpp cannot load the GGUF at offset {offset}")
        return cls(library, address, path, options)

    @classmethod
    def _open(cls, library: Library, path: Path, options: ModelOptions, heads: bool) -> Model:
        if not path.is_file():
            raise RuntimeUnavailable(f"{path}: no such file")
        require_sound(path)
        if heads and not library.has_heads(path):
            raise RuntimeUnavailable(
                f"{path}: not a merged file (it carries no MTP heads); convert and attach make "
                f"one, --heads names a drafter's file"
            )
        params, _keep_alive = _model_params(library, options)
        library.log.clear()
        address = (
            library.load_heads(path, params)
            if heads
            else library.api.llama_model_load_from_file(os.fsencode(path), params)
        )
        if not address:
            what = "the heads inside" if heads else "this file"
            raise library.failure(f"{path}: llama.cpp cannot load {what}")
        return cls(library, address, path, options)

    @property
    def address(self) -> Any:
        """The ``llama_model *``. Raises RuntimeUnavailable after `close`."""
        if self._address is None:
            raise RuntimeUnavailable(f"{self.path}: the model is closed")
        return self._address

    @property
    def architecture(self) -> str:
        """The file's ``general.architecture``."""
        text = ctypes.create_string_buffer(64)
        key = b"general.architecture"
        self.library.api.llama_model_meta_val_str(self.address, key, text, len(text))
        return text.value.decode("utf-8", "replace")

    @property
    def ftype(self) -> str:
        """The quantization as llama.cpp names it, such as ``all F32`` or ``Q8_0``."""
        api = self.library.api
        name = api.llama_ftype_name(api.llama_model_ftype(self.address))
        return name.decode("utf-8", "replace") if name else "unknown"

    @property
    def is_all_f32(self) -> bool:
        """Whether the file declares that its matrices are all F32."""
        return bool(self.library.api.llama_model_ftype(self.address) == FTYPE_ALL_F32)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Turn text into token ids, with BOS where the model wants it; control tokens stay text."""
        return self._tokens(text, start=True, control=False)

    @property
    def has_chat_template(self) -> bool:
        """Whether the file has a chat template: a model that answers rather than continues."""
        return bool(self.library.api.llama_model_chat_template(self.address, None))

    def tokenize_turn(self, text: str, first: bool = True) -> tuple[int, ...]:
        """Turn a user's message into token ids up to where the model's answer begins.

        Gemma 4's turn markup; only the `first` turn of a chat begins with BOS. Raises
        RuntimeUnavailable where the vocabulary lacks the markup.
        """
        before = self._tokens("<|turn>user\n", start=first, control=True)
        after = self._tokens("<turn|>\n<|turn>model\n", start=False, control=True)
        if self.piece(after[0]) != b"<turn|>":
            raise RuntimeUnavailable(f"{self.path}: the vocabulary has no Gemma 4 turn markup")
        return before + self._tokens(text, start=False, control=False) + after

    def _tokens(self, text: str, start: bool, control: bool) -> tuple[int, ...]:
        raw = text.encode("utf-8")
        room = len(raw) + 8
        buffer = (ctypes.c_int32 * room)()
        n = self.library.api.llama_tokenize(
            self._vocab, raw, len(raw), buffer, room, start, control
        )
        if n < 0:
            raise self.library.failure(f"{self.path}: cannot tokenize {text[:40]!r}")
        return tuple(buffer[:n])

    def tokenize_turn_end(self) -> tuple[int, ...]:
        """Return what stands between the model's answer and the next turn."""
        return self._tokens("<turn|>\n", start=False, control=True)

    def piece(self, token: int, control: bool = True) -> bytes:
        """Return one token's text as bytes; of control tokens nothing where `control` is False."""
        buffer = ctypes.create_string_buffer(512)
        n = self.library.api.llama_token_to_piece(self._vocab, token, buffer, 512, 0, control)
        return buffer.raw[: max(0, n)]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 come out as U+FFFD."""
        return b"".join(self.piece(token) for token in tokens).decode("utf-8", "replace")

    def end_tokens(self) -> frozenset[int]:
        """Return the token ids that end a generation."""
        is_end = self.library.api.llama_vocab_is_eog
        return frozenset(t for t in range(self.n_vocab) if is_end(self._vocab, t))

    def close(self) -> None:
        """Free the model. Its contexts must be closed before."""
        if self._address is not None:
            self.library.api.llama_model_free(self._address)
            self._address = None


class Context(Closing):
    """One sequence of one model: decodes tokens at given positions and gives rows back.

    With `target`, a drafter's context that reads the target's KV cache (``ctx_other``).
    llama.cpp clears the target's cache when such a context is made, so make it before the
    target's first decode, and close it before the target's.
    """

    def __init__(
        self, model: Model, options: ContextOptions, target: Context | None = None
    ) -> None:
        self.model = model
        self.options = options
        self.library = model.library
        self._address: Any = None
        api = self.library.api
        params = api.llama_context_default_params()
        params.n_ctx = options.n_ctx
        # A drafter decodes one token at a time; its compute buffers grow with n_ubatch.
        params.n_batch = min(options.n_batch, options.n_ctx) if target is None else 8
        params.n_ubatch = params.n_batch
        params.n_outputs_max = min(MAX_OUTPUTS, params.n_batch) if target is None else 1
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = options.n_threads
        params.type_k = params.type_v = KV_TYPES[options.kv_type]
        params.flash_attn_type = FLASH_ATTN[options.flash_attn]
        if model.options.device == CPU:
            params.offload_kqv = params.op_offload = False
        if target is not None:
            params.ctx_type = CONTEXT_TYPE_MTP
            params.ctx_other = target.address
        self.library.log.clear()
        address = api.llama_init_from_model(model.address, params)
        if not address:
            raise self.library.failure(f"{model.path}: llama.cpp cannot make a context")
        self._address = address
        self.cache_placement = placement(self.library.log.lines(), "KV")
        self.compute_placement = placement(self.library.log.lines(), "compute")
        self.flash_attn = options.flash_attn
        if self.flash_attn == "auto":  # only the log says what was chosen
            self.flash_attn = _flash_attn_chosen(self.library.log.lines())
        self._memory = api.llama_get_memory(address)
        self.n_batch = int(api.llama_n_batch(address))
        self._batch = _Batch(api, self.n_batch, model.n_embd_out)

    @property
    def address(self) -> Any:
        """The ``llama_context *``. Raises RuntimeUnavailable after `close`."""
        if self._address is None:
            raise RuntimeUnavailable(f"{self.model.path}: the context is closed")
        return self._address

    def enable_hidden(self, outputs_only: bool) -> None:
        """Make decodes keep hidden rows: of every token, or only of rows with logits."""
        self.library.ext.llama_set_embeddings_nextn(self.address, True, outputs_only)

    def decode(self, tokens: Sequence[int], position: int, all_rows: bool = True) -> None:
        """Decode `tokens` in one batch at `position`, `position` + 1, …

        Logits are kept for every token (`all_rows`, at most `MAX_OUTPUTS`) or the last one.
        Raises RuntimeUnavailable where llama.cpp refuses: it accepts only the position that
        follows the last one in the cache.
        """
        self._run(self._batch.of_tokens(tokens, position, all_rows), position)

    def decode_with_hidden(self, token: int, hidden: Row, position: int) -> None:
        """Decode one token together with a hidden row [n_embd_out] (a drafter's input)."""
        self._run(self._batch.of_hidden(token, hidden, position), position)

    def _run(self, batch: Any, position: int) -> None:
        self.library.log.clear()
        code = self.library.api.llama_decode(self.address, batch)
        if code != 0:
            raise self.library.failure(
                f"{self.model.path}: llama.cpp refused {batch.n_tokens} token(s) at position "
                f"{position} (code {code})"
            )
        self.library.api.llama_synchronize(self.address)

    def prefill(self, tokens: Sequence[int]) -> None:
        """Clear the cache and decode a prompt in batches of `n_batch`; the last row has logits."""
        self.clear()
        for start in range(0, len(tokens), self.n_batch):
            self.decode(tokens[start : start + self.n_batch], start, all_rows=False)

    def logits(self, i: int) -> Row:
        """Return a view [n_vocab] of batch row `i`'s logits, valid until the next decode."""
        pointer = self.library.api.llama_get_logits_ith(self.address, i)
        if not pointer:
            raise self.library.failure(f"{self.model.path}: no logits for batch row {i}")
        row: Row = np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))
        return row

    def best(self, i: int) -> int:
        """Return the token with the highest logit of batch row `i`; ties go to the lowest id.

        That is llama.cpp's greedy sampler (``llama_sampler_greedy_apply``: strictly greater).
        Raises RuntimeUnavailable on NaN, which has no argmax.
        """
        row = self.logits(i)
        token = int(np.argmax(row))
        if np.isnan(row[token]):
            raise RuntimeUnavailable(f"{self.model.path}: logits are not numbers (NaN)")
        return token

    def hidden(self, i: int) -> Row:
        """Return a copy [n_embd_out] of batch row `i`'s hidden state.

        A copy because llama.cpp reuses the buffer on the next decode.
        """
        pointer = self.library.ext.llama_get_embeddings_nextn_ith(self.address, i)
        if not pointer:
            raise self.library.failure(f"{self.model.path}: no hidden row {i}")
        row: Row = np.ctypeslib.as_array(pointer, shape=(self.model.n_embd_out,)).copy()
        return row

    def keep(self, n_tokens: int) -> None:
        """Drop everything from position `n_tokens` on from the cache."""
        if not self.library.api.llama_memory_seq_rm(self._memory, 0, n_tokens, -1):
            raise self.library.failure(
                f"{self.model.path}: the KV cache cannot be cut at position {n_tokens}"
            )

    def clear(self) -> None:
        """Empty the cache."""
        self.library.api.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free the context."""
        if self._address is not None:
            self.library.api.llama_free(self._address)
            self._address = None


class _Batch:
    """Storage behind a ``llama_batch``; owned here, so nothing of it is freed by llama.cpp.

    ``llama_batch_init`` gives either tokens or embeddings; a drafter needs both.
    """

    def __init__(self, api: Any, n_tokens: int, n_embd: int) -> None:
        self._api = api
        self._token = (ctypes.c_int32 * n_tokens)()
        self._pos = (ctypes.c_int32 * n_tokens)()
        self._n_seq_id = (ctypes.c_int32 * n_tokens)(*[1] * n_tokens)
        self._logits = (ctypes.c_int8 * n_tokens)()
        sequence = (ctypes.c_int32 * 1)(0)
        self._sequence = sequence
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._seq_id = (pointer * n_tokens)(
            *[ctypes.cast(sequence, pointer) for _ in range(n_tokens)]
        )
        self._hidden = np.zeros(n_embd, dtype=np.float32)
        self._embd = self._hidden.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._capacity = n_tokens

    def _batch(self, n: int, embd: Any) -> Any:
        return self._api.llama_batch(
            n_tokens=n,
            token=self._token,
            embd=embd,
            pos=self._pos,
            n_seq_id=self._n_seq_id,
            seq_id=self._seq_id,
            logits=self._logits,
        )

    def of_tokens(self, tokens: Sequence[int], position: int, all_rows: bool) -> Any:
        n = len(tokens)
        if not 0 < n <= self._capacity:
            raise ValueError(f"{n} tokens in a batch of {self._capacity}")
        self._token[:n] = list(tokens)
        self._pos[:n] = list(range(position, position + n))
        for i in range(n):
            self._logits[i] = all_rows or i == n - 1
        return self._batch(n, None)

    def of_hidden(self, token: int, hidden: Row, position: int) -> Any:
        self._hidden[:] = hidden
        self._token[0], self._pos[0], self._logits[0] = token, position, 1
        return self._batch(1, self._embd)


@contextmanager
def _c_file(path: Path, offset: int) -> Iterator[int]:
    """C's ``FILE *`` on `path`, positioned at byte `offset`. llama.cpp needs it only to load."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fopen.argtypes, libc.fopen.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_void_p
    libc.fseeko.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    libc.fclose.argtypes = [ctypes.c_void_p]
    file = libc.fopen(os.fsencode(path), b"rb")
    if not file:
        raise RuntimeUnavailable(f"{path}: {os.strerror(ctypes.get_errno())}")
    try:
        if libc.fseeko(file, offset, os.SEEK_SET):
            raise RuntimeUnavailable(f"{path}: {os.strerror(ctypes.get_errno())}")
        yield file
    finally:
        libc.fclose(file)


def _flash_attn_chosen(log: Sequence[str]) -> str:
    """Tell from a context's log (``resolve_fused_ops``) what flash attention ``auto`` became."""
    if any("Flash Attention not supported" in line for line in log):
        return "off"
    return "on" if any("Flash Attention enabled" in line for line in log) else "unknown"


def _model_params(library: Library, options: ModelOptions) -> tuple[Any, Any]:
    """Return ``llama_model_params`` and what they point to. Raises on an unknown device."""
    params = library.api.llama_model_default_params()
    params.use_extra_bufts = options.repack
    layers = options.gpu_layers
    params.n_gpu_layers = ALL_LAYERS if layers < 0 else layers
    if options.device is None:
        return params, None
    if options.device == CPU:
        params.n_gpu_layers = 0
        nothing = (ctypes.c_void_p * 1)(None)  # an empty list, where NULL would mean "all"
        params.devices = ctypes.cast(nothing, ctypes.c_void_p)
        return params, nothing
    devices = {device.name.lower(): device for device in library.devices()}
    handles = (ctypes.c_void_p * (options.device.count(",") + 2))()  # ends with NULL
    for i, name in enumerate(options.device.split(",")):
        if name.strip().lower() not in devices:
            names = ", ".join(device.name for device in devices.values()) or "none"
            raise RuntimeUnavailable(f"no device {name.strip()!r}; the library has: {names}")
        handles[i] = devices[name.strip().lower()].handle
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    return params, handles
