"""vLLM as the decoder, for bulk translation: audio encoder and projector in torch here, the decoder in a worker there.

vLLM's versions of torch and transformers are not ours, so that it runs in an environment of its own and is spoken to by
files (models/vllm_worker.py). It is given embeddings and not ids, because the audio among them has none: the decoder is
written beside as a plain causal language model, and any window, any pruned or trimmed decoder will do.

Its texts are ours but for the rounding of another kernel: what is scored, timed or ranked is never decoded by it.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.checkpoint.reading import Checkpoint
from sordino.checkpoint.writing import Planned, Writer
from sordino.errors import ArtifactError, FamilyError
from sordino.models import config_file, devices, embedded, hybrid, processor_check, registry, stored, vllm_worker
from sordino.models.family import Family
from sordino.models.parts import is_tied
from sordino.models.speech import SpeechModel
from sordino.models.vllm_environment import environment, refuse_other, require
from sordino.runtime import files
from sordino.runtime.progress import byte_bar

DECODERS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
PROMPT_TOKENS = 1024  # beside the audio's
PART = 8  # batches that are handed over at once: vLLM fills a place as soon as it is free
GIB = 2**30
MOST_CACHE = 4  # GiB of keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise
LAYERS, PACKED = "model.layers.", ".weight_packed"


def load(
    path: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str | None = None,
    revision: str | None = None,
    sequences: int = 16,
    max_new_tokens: int = 256,
    room: Path | None = None,
    begun: Mapping[str, str] | None = None,
) -> SpeechModel:
    """A 16-bit, 32-bit or w4a16 model directory or Hub id without its decoder, which a worker will run.

    room: directory for the decoder's copy and the files that are exchanged, kept for the next start; a temporary one
    without it. Nothing is copied or started before the first translation, which refuses another vLLM than `begun`.
    Raises FamilyError, ArtifactError.
    """
    import transformers

    if (Path(path) / config_file.ADAPTER_CONFIG).is_file() and not (Path(path) / registry.CONFIG).is_file():
        raise FamilyError(f"{path} holds an adapter, and engine vllm takes whole models.", "Give the merged model.")
    family = registry.family_of(path, revision)
    directory = stored.local(path, revision)
    config = registry.read_config(str(directory))
    where = torch.device(device) if str(device) != "auto" else devices.default_device()
    floating = dtype if isinstance(dtype, torch.dtype) else devices.default_dtype(dtype, where)
    if registry.is_gguf(str(directory)):
        raise FamilyError(f"{path} holds a decoder for llama.cpp.", "Give the 16-bit model or w4a16 to engine vllm.")
    checkpoint = embedded.open_checkpoint(family, directory)
    _refuse_quantized(path, family, config, checkpoint)
    stored.refuse_other_weights(family, directory, checkpoint)
    processor = registry.load_processor(family, str(directory))
    whole = stored.skeleton(family, directory)
    text = whole.config.get_text_config()
    if text.model_type not in DECODERS:
        raise FamilyError(
            f"{path}: vLLM is not given decoders of the type {text.model_type}, only {', '.join(DECODERS)}.",
            "Leave out engine: vllm.",
        )
    if config.get("quantization_config") and floating == torch.float32:
        raise FamilyError(f"{path}: vLLM has no 4-bit kernel that computes in float32.", "Set dtype: bfloat16.")
    options: dict[str, Any] = {"dtype": floating, "device_map": {"": str(where)}}
    if attention:
        options["attn_implementation"] = attention
    small = hybrid.without_layers(whole.config, family)
    names = [name for name in checkpoint.tensors if decoder_name(family, name) is None or _is_embedding(family, name)]
    weights = {name: checkpoint.read(name) for name in names}
    refuse_nonfinite(path, weights.items())
    model = getattr(transformers, family.model_class).from_pretrained(None, config=small, state_dict=weights, **options)
    model.eval().requires_grad_(False)
    model.config, model.generation_config = whole.config, whole.generation_config
    decoder = VllmDecoder(family, checkpoint, config, text, floating, where, sequences, room, begun or {})
    speech = SpeechModel(family, model, processor, path, decoder)
    longest = family.audio.tokens(speech.window_samples) + PROMPT_TOKENS + max_new_tokens
    decoder.longest = min(longest, text.max_position_embeddings)
    processor_check.check(speech)
    return speech


def _refuse_quantized(path: str, family: Family, config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise FamilyError for forms that vLLM has no kernels for: all but 4 bits in the decoder's layers."""
    quantization = config.get("quantization_config")
    if not quantization:
        return
    groups = quantization.get("config_groups") or {}
    bits = {(group.get("weights") or {}).get("num_bits") for group in groups.values()}
    packed = [decoder_name(family, name) or "" for name in checkpoint.tensors if name.endswith(PACKED)]
    inside = all(name.startswith(LAYERS) for name in packed)
    if quantization.get("quant_method") != "compressed-tensors" or bits != {4} or not inside:
        raise FamilyError(
            f"{path} is quantized in a form that engine vllm is not given.", "Give the 16-bit model or w4a16."
        )


def decoder_name(family: Family, name: str) -> str | None:
    """A stored tensor's name in a plain causal language model; None for what is not of the decoder."""
    live = family.tensors.live_name(name)
    for part, stem in (("head", "lm_head."), ("decoder", "model.")):
        prefix = f"{family.parts[part]}."
        if live.startswith(prefix):
            return stem + live.removeprefix(prefix)
    return None


def _is_embedding(family: Family, name: str) -> bool:
    return family.tensors.live_name(name).startswith(f"{family.parts['embeddings']}.")


def write_decoder(family: Family, checkpoint: Checkpoint, config: Mapping[str, Any], text: Any, out: Path) -> None:
    """The decoder as a plain causal language model, its tensors as they are stored; config.json last."""
    names = {decoder_name(family, name): name for name in checkpoint.tensors}
    names.pop(None, None)
    planned = {
        str(name): Planned(checkpoint.tensors[source].dtype, checkpoint.tensors[source].shape)
        for name, source in names.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    with Writer(out, planned) as writer, byte_bar("the decoder for vLLM", writer.bytes) as advance:
        for name in sorted(planned):
            writer.copy(name, checkpoint, names[name])
            advance(planned[name].bytes)
    written = {**text.to_dict(), "architectures": [DECODERS[text.model_type]]}
    written["tie_word_embeddings"] = is_tied(config)
    quantization = copy.deepcopy(config.get("quantization_config"))
    if quantization:
        for group in quantization["config_groups"].values():  # layers have another path here
            group["targets"] = [f"re:.*{target[target.index('layers') :]}" for target in group["targets"]]
        quantization["ignore"] = ["lm_head"]  # every other matrix of the decoder is packed
        written["quantization_config"] = quantization
    files.write_json(out / registry.CONFIG, written)


class VllmDecoder:
    """The worker that decodes, started by the first question. versions: what it runs, once it has started."""

    def __init__(
        self,
        family: Family,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        text: Any,
        dtype: torch.dtype,
        device: torch.device,
        sequences: int,
        room: Path | None,
        begun: Mapping[str, str],
    ) -> None:
        self.source = family, checkpoint, config, text
        self.dtype, self.device, self.sequences, self.begun = dtype, device, sequences, begun
        self.longest = int(text.max_position_embeddings)
        self.room = room or Path(tempfile.mkdtemp(prefix="sordino-vllm-"))
        self.temporary = room is None
        self.process: subprocess.Popen[str] | None = None
        self.versions: dict[str, str] = {}
        self.parts = 0

    def greedy(
        self, prompts: Sequence[Tensor], stops: Sequence[int], max_new_tokens: int, suppressed: Sequence[int] = ()
    ) -> list[list[int]]:
        """Prompts (S, H) each -> the likeliest ids but the suppressed, cut before the first of `stops`.

        Raises ArtifactError, with its last words, where the worker has ended; FamilyError without its environment.
        """
        from safetensors.torch import save_file

        if self.process is None:
            self._start()
        assert self.process and self.process.stdin
        self.parts += 1
        part = f"{self.parts:05}"
        tensors = {str(i): p.detach().to("cpu", self.dtype).contiguous().clone() for i, p in enumerate(prompts)}
        save_file(tensors, self.room / f"{part}.safetensors")
        asked = {"part": part, "stops": [*stops], "max_new_tokens": max_new_tokens, "suppressed": [*suppressed]}
        with contextlib.suppress(BrokenPipeError):  # _wait says why
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        answers = self.room / f"{part}.jsonl"
        self._wait(answers)
        rows = files.read_jsonl(answers)
        if [row.get("i") for row in rows] != list(range(len(prompts))):
            raise ArtifactError(f"{answers} holds {len(rows)} answers to {len(prompts)} prompts.", "Start again.")
        for file in (answers, self.room / f"{part}.safetensors"):
            file.unlink()
        return [[int(token) for token in row["ids"]] for row in rows]

    def _start(self) -> None:
        family, checkpoint, config, text = self.source
        refuse_other(require(), self.begun)
        model = self.room / "decoder"
        self.room.mkdir(parents=True, exist_ok=True)
        for stale in (*self.room.glob("[0-9]*.*"), self.room / vllm_worker.READY):
            stale.unlink(missing_ok=True)
        if not (model / registry.CONFIG).is_file():
            write_decoder(family, checkpoint, config, text, model)
        job = {
            "model": str(model),
            "dtype": str(self.dtype).removeprefix("torch."),
            "longest": self.longest,
            "sequences": self.sequences,
            "vocabulary": text.vocab_size,
            "eager": self.device.type == "cpu",
        }
        files.write_json(self.room / "job.json", job)
        command = [environment() / "bin" / "python", Path(vllm_worker.__file__), self.room]
        with (self.room / "worker.log").open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=self._variables(text),
                start_new_session=True,
            )  # fmt: skip
        atexit.register(self.close)
        ready = self.room / vllm_worker.READY
        self._wait(ready)
        self.versions = files.read_json(ready, {})

    def _variables(self, text: Any) -> dict[str, str]:
        """The worker's environment variables: this process's without its Python; the device and room it has."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        kept.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, so that ending it ends all
        if self.device.type == "cpu":
            head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * self.dtype.itemsize
            room = min(MOST_CACHE, -(-token * self.longest * self.sequences // GIB))
            kept.setdefault("VLLM_CPU_KVCACHE_SPACE", str(room))
        elif self.device.index is not None:
            visible = [name for name in kept.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            kept["CUDA_VISIBLE_DEVICES"] = visible[self.device.index] if visible else str(self.device.index)
        return kept

    def _wait(self, file: Path) -> None:
        """Until a file is there. Raises ArtifactError where the worker ends before."""
        assert self.process
        while not file.exists():
            code = self.process.poll()
            if code is not None and not file.exists():
                self.process = None
                log = self.room / "worker.log"
                remedy = "Start again." if self.temporary else f"What was translated is kept. Its log is {log}."
                raise ArtifactError(f"vLLM's worker ended with {code}: {last_words(log)}", remedy)
            time.sleep(0.02)

    def close(self) -> None:
        """End the worker."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self.temporary:
            shutil.rmtree(self.room, ignore_errors=True)

    def __del__(self) -> None:
        if hasattr(self, "parts"):
            self.close()


def last_words(log: Path) -> str:
    """The last line of a log that names an error, else its last line; clipped."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\w*(Error|Exception)\b: ", line)]
    return ([*lines, *errors] or ["it said nothing"])[-1][:300]
