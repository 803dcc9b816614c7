"""llama.cpp through llama-cpp-python: it quantizes rows, and decodes greedily from embeddings. Optional.

A decoder is asked with embeddings and not with ids, because the audio among them has none. Several clips are decoded
at once as sequences of one batch, each with a cache of its own: in one for all, every token would attend to all clips.

Where llama.cpp was built for AMX, its own weight layouts stay off: compiled with gcc 12 they crash on every quantized
model (ggml-org/llama.cpp#20824).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.errors import FamilyError

EXTRA = "Run: pip install '.[gguf]' (it compiles llama.cpp: a C++ compiler, some 15 minutes)"
BATCH_TOKENS = 2048  # of one call, over all sequences
ERROR = 4  # ggml's level of a log line
ALL_LAYERS = 1_000_000


def available() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


class Library:
    """llama_cpp, silent, its last complaint kept. Raises FamilyError where it is not installed or does not load."""

    _one: Library | None = None

    def __init__(self) -> None:
        if not available():
            raise FamilyError("GGUF models need llama-cpp-python, which is not installed.", EXTRA + ".")
        try:
            self.api: Any = importlib.import_module("llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise FamilyError(f"llama-cpp-python does not load ({error}).", EXTRA + " once more.") from error
        self.complaint = ""

        self._log = self.api.llama_log_callback(self._hear)  # ctypes keeps no reference of its own
        self.api.llama_log_set(self._log, ctypes.c_void_p(0))
        self.api.llama_backend_init()

    @classmethod
    def get(cls) -> Library:
        """The one there is: llama.cpp's settings belong to the process."""
        if cls._one is None:
            cls._one = cls()
        return cls._one

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            self.complaint = text.decode("utf-8", "replace").strip()

    @property
    def has_amx(self) -> bool:
        return b"AMX_INT8 = 1" in self.api.llama_print_system_info()


def quantize(rows: NDArray[np.float32], kind: int, row_bytes: int) -> NDArray[np.uint8]:
    """(R, C) -> (R, row_bytes), in ggml's type of this number, as llama.cpp's own tool writes it without imatrix."""
    function = Library.get().api.llama_cpp._lib.ggml_quantize_chunk  # libllama's dependency, so blocks through it
    function.restype = ctypes.c_size_t
    number = ctypes.c_int64
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, number, number, number, ctypes.c_void_p]
    rows = np.ascontiguousarray(rows)
    blocks = np.empty((len(rows), row_bytes), np.uint8)
    written = function(kind, rows.ctypes.data, blocks.ctypes.data, 0, *rows.shape, None)
    if written != blocks.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {rows.shape}, and not {blocks.nbytes}")
    return blocks


class GgufDecoder:
    """A decoder's GGUF file, opened. Raises FamilyError where llama.cpp does not take it."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.library = Library.get()
        api = self.library.api
        options = api.llama_model_default_params()
        options.n_gpu_layers = ALL_LAYERS if device.type != "cpu" and api.llama_supports_gpu_offload() else 0
        options.use_extra_bufts = not self.library.has_amx
        self.model = api.llama_model_load_from_file(str(file).encode(), options)
        if not self.model:
            raise FamilyError(f"llama.cpp does not load {file}: {self.library.complaint}.", "Export the model again.")
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))
        self.context: Any = None
        self.suppressed: list[int] = []
        self.room = (0, 0)  # tokens of a sequence, sequences that the context has room for

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self.library.api.llama_free(self.context)
        if getattr(self, "model", None):
            self.library.api.llama_model_free(self.model)

    def greedy(
        self, prompts: Sequence[Tensor], stops: Sequence[int], max_new_tokens: int, suppressed: Sequence[int] = ()
    ) -> list[list[int]]:
        """Prompts (S, H) each -> the likeliest ids but the suppressed, cut before the first of `stops`."""
        self.suppressed = list(suppressed)
        rows = [np.ascontiguousarray(p.detach().to("cpu", torch.float32).numpy()) for p in prompts]
        self._make_room(max(map(len, rows)) + max_new_tokens, len(rows))
        ids: list[list[int]] = [[] for _ in rows]
        latest = self._read(rows)
        for step in range(max_new_tokens):
            live = [i for i, token in latest.items() if token not in stops]
            for i in live:
                ids[i].append(latest[i])
            if not live or step + 1 == max_new_tokens:
                break
            latest = self._step([(i, latest[i], len(rows[i]) + step) for i in live])
        return ids

    def _make_room(self, tokens: int, sequences: int) -> None:
        """Empty caches for at least so many sequences of so many tokens; threads as torch has them."""
        api = self.library.api
        if tokens > self.room[0] or sequences > self.room[1]:
            if self.context:
                api.llama_free(self.context)
            self.room = (max(tokens, self.room[0]), max(sequences, self.room[1]))
            options = api.llama_context_default_params()
            options.n_ctx, options.n_seq_max = self.room[0] * self.room[1], self.room[1]
            options.n_batch = BATCH_TOKENS
            options.flash_attn_type = self.library.api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds queries to 16 bits
            self.context = api.llama_init_from_model(self.model, options)
            if not self.context:
                self.room = (0, 0)
                raise FamilyError(
                    f"llama.cpp has no room for {sequences} clips of {tokens} tokens: {self.library.complaint}.",
                    "Set a smaller batch_size.",
                )
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        threads = torch.get_num_threads()
        api.llama_set_n_threads(self.context, threads, threads)

    def _read(self, rows: Sequence[NDArray[np.float32]]) -> dict[int, int]:
        """Take in all prompts, BATCH_TOKENS at a time -> the first id of every sequence."""
        width = rows[0].shape[1]
        places = [(i, at) for i, row in enumerate(rows) for at in range(len(row))]
        batch = self.library.api.llama_batch_init(min(len(places), BATCH_TOKENS), width, 1)
        latest: dict[int, int] = {}
        try:
            for start in range(0, len(places), BATCH_TOKENS):
                part = places[start : start + BATCH_TOKENS]
                given = np.ctypeslib.as_array(batch.embd, (len(part), width))
                for k, (i, at) in enumerate(part):
                    given[k] = rows[i][at]
                latest |= self._decode(batch, [(i, at, at + 1 == len(rows[i])) for i, at in part])
        finally:
            self.library.api.llama_batch_free(batch)
        return latest

    def _step(self, live: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        """One more id for each (sequence, its last id, that id's position)."""
        batch = self.library.api.llama_batch_init(len(live), 0, 1)
        try:
            for k, (_, token, _) in enumerate(live):
                batch.token[k] = token
            return self._decode(batch, [(i, at, True) for i, _, at in live])
        finally:
            self.library.api.llama_batch_free(batch)

    def _decode(self, batch: Any, places: Sequence[tuple[int, int, bool]]) -> dict[int, int]:
        """places: sequence, position, whether the next id is asked for -> likeliest id by sequence."""
        batch.n_tokens = len(places)
        for k, (sequence, at, asked) in enumerate(places):
            batch.pos[k], batch.n_seq_id[k], batch.seq_id[k][0], batch.logits[k] = at, 1, sequence, asked
        api = self.library.api
        code = api.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp failed with {code}: {self.library.complaint}")
        chosen = {}
        for k, (sequence, _, asked) in enumerate(places):
            if asked:
                logits = np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, k), (self.vocabulary,))
                if self.suppressed:
                    logits = logits.copy()
                    logits[self.suppressed] = -np.inf
                chosen[sequence] = int(logits.argmax())
        return chosen
