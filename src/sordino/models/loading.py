"""Opening and saving models: a checkpoint, and any model of a run: plain, quantized, an adapter, or a GGUF export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.errors import FamilyError, explain_os_error, is_out_of_memory, reason
from sordino.models import (
    adapter_base,
    adapters,
    config_file,
    deferred,
    embedded,
    hybrid,
    nf4,
    processor_check,
    registry,
    stored,
)
from sordino.models.deferred import Deferred
from sordino.models.devices import default_device, default_dtype
from sordino.models.family import Family
from sordino.models.speech import SpeechModel, module_at

ADAPTER_CONFIG = config_file.ADAPTER_CONFIG


def open_model(path: str, **options: Any) -> SpeechModel:
    """Load what lies at `path`. Options are those of load_checkpoint.

    An adapter directory is opened on the base its config names, quantized as it was while training.
    Raises FamilyError for anything that is no model.
    """
    directory = Path(path)
    if (directory / registry.CONFIG).is_file() or not (directory / ADAPTER_CONFIG).is_file():
        if directory.is_dir() and not (directory / "config.json").is_file():
            inside = sorted(p.parent.name for p in directory.glob("*/config.json"))
            if inside:
                raise FamilyError(
                    f"{path} is no model directory, but holds some: {', '.join(inside)}.",
                    f"Give one, e.g. {directory / inside[0]}.",
                )
        return hybrid.load(path, **options) if registry.is_gguf(path) else load_checkpoint(path, **options)
    stage = adapter_base.stage_of(directory)
    base = adapter_base.base_of(directory)
    adapter_base.refuse_other(directory, base, options.get("revision"))
    speech = load_checkpoint(base, **adapters.base_options(stage["section"]), **options)
    adapters.load(speech, directory)
    speech.path = path
    return speech


def load_checkpoint(
    path: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["nf4"] | None = None,
    kept: Sequence[str] = (),
    attention: str | None = None,
    revision: str | None = None,
) -> SpeechModel:
    """Load a model directory (or Hub id) with stock `from_pretrained`; a stored quantization is respected.

    quantize="nf4" quantizes the linear layers while loading (bitsandbytes, double quantization), but for the head and
    the parts in `kept`.
    Raises FamilyError for an unknown family, weights that do not load or are no numbers, an adapter beside them, and a
    model whose decoder is not transformers'; ArtifactError for damaged shards, by name.
    """
    import transformers

    family = registry.family_of(path, revision)
    directory = stored.local(path, revision)
    _refuse_gguf(path, directory)
    where, floating = _place(device, dtype)
    model_class = getattr(transformers, family.model_class)
    options: dict[str, Any] = {"dtype": floating, "use_safetensors": True, "device_map": {"": str(where)}}
    if attention:
        options["attn_implementation"] = attention
    checkpoint = embedded.open_checkpoint(family, directory)
    if quantize and isinstance(checkpoint, embedded.Merged):
        raise FamilyError(
            f"{path} holds an adapter beside its weights, which is not merged into 4-bit ones.",
            "Write it merged first (export.formats: [bf16]), and give that.",
        )
    stored.refuse_other_weights(family, directory, checkpoint)
    processor = registry.load_processor(family, str(directory))
    if quantize == "nf4":
        options["quantization_config"] = nf4.nf4_config(family, floating, kept)
    try:
        with embedded.without_adapter(checkpoint, str(directory)) as place:
            model, report = model_class.from_pretrained(place, output_loading_info=True, **options)
    except FamilyError:
        raise
    except Exception as error:  # safetensors and transformers raise many types for damaged files
        if is_out_of_memory(error) or explain_os_error(error) is not None:
            raise
        raise FamilyError(
            f"the weights in {path} do not load: {type(error).__name__}: {reason(error)}.",
            "Copy or make the model again.",
        ) from error
    stored.check_names(
        path,
        missing=report["missing_keys"],
        unexpected=[name for name in report["unexpected_keys"] if not name.startswith(family.tensors.ignored)],
        mismatched=[f"'{key[0]}'" for key in report["mismatched_keys"]],
    )
    embedded.put_in(family, model, checkpoint)
    _prepare(family, model)
    if quantize or getattr(model, "is_quantized", False):
        _prepare_quantized(family, model, floating, quantize, kept)
    speech = SpeechModel(family, model, processor, path)
    _refuse_nonfinite(speech, floating)
    processor_check.check(speech)
    return speech


def open_deferred(
    path: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str | None = None,
    revision: str | None = None,
) -> SpeechModel:
    """A 16- or 32-bit model directory (or Hub id) as `load_checkpoint` opens it, but its weights are still to be read.

    Raises as `stored.open_model` does; weights that are no numbers are found by who reads them.
    """
    directory = stored.local(path, revision)
    _refuse_gguf(path, directory)
    where, floating = _place(device, dtype)
    opened = stored.open_model(str(directory), build=partial(deferred.build, dtype=floating, attention=attention))
    speech = opened.speech
    speech.model.config.name_or_path = str(directory)
    names = {name: opened.name_of[id(t)] for name, t in speech.model.state_dict(keep_vars=True).items()}
    speech.path, speech.deferred = path, Deferred(opened.checkpoint, names, where)
    deferred.fill_buffers(speech.model, speech.deferred)
    _prepare(speech.family, speech.model)
    _refuse_nonfinite(speech, floating)  # saved buffers
    processor_check.check(speech)
    return speech


def read_parts(speech: SpeechModel, parts: Iterable[str]) -> None:
    """Read what is still to be read of some parts, whole. Raises FamilyError for weights that are no numbers."""
    if speech.deferred is None:
        return
    names = {f"{speech.family.parts[part]}.{inner}" for part in parts for inner in speech.tensors_of(part)}
    speech.deferred.fill(speech.model, only=names)
    _refuse_nonfinite(speech, speech.dtype)


def _place(device: str | torch.device, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """'auto' resolved."""
    where = torch.device(device) if str(device) != "auto" else default_device()
    return where, dtype if isinstance(dtype, torch.dtype) else default_dtype(dtype, where)


def _refuse_gguf(path: str, directory: Path) -> None:
    if registry.is_gguf(str(directory)):
        raise FamilyError(
            f"{path} holds a decoder for llama.cpp, which translates and does nothing else.",
            "Train, rank, prune, merge or export the 16-bit model it was made from.",
        )


def _prepare(family: Family, model: Any) -> None:
    """For inference, and so that what the family never trains is frozen."""
    model.eval()
    family.ready(model)
    still = {name for name, _ in model.named_modules() if not family.tensors.runs(name)}
    for part in (*family.tensors.fixed, *still):  # the class freezes the fixed ones, and loading undoes that
        module_at(model, part).requires_grad_(False)


def _prepare_quantized(
    family: Family, model: Any, floating: torch.dtype, quantize: str | None, kept: Sequence[str]
) -> None:
    """Let a quantized model compute in `floating`. Raises FamilyError for layers that are not quantized as asked."""
    if nf4.is_packed(model):
        nf4.unpack(model)
    four_bit = set(nf4.quantized_linears(model))
    if model.device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        layers = {name: layer for name, layer in nf4.linears(family, model).items() if name in four_bit}
        nf4.refuse_split_blocks(family, layers)
    nf4.set_compute_dtype(model, floating)
    if quantize:
        nf4.check_nf4(family, model, kept)


def _refuse_nonfinite(speech: SpeechModel, floating: torch.dtype) -> None:
    """Of all that is read."""
    saved_name = speech.family.tensors.saved_name
    tensors = ((saved_name(name), tensor) for name, tensor in speech.model.state_dict().items())
    try:
        refuse_nonfinite(speech.path, tensors)
    except FamilyError as error:
        if floating == torch.float16:  # which ends at 65,504
            raise FamilyError(error.problem, "Take bfloat16 or float32, unless the model is damaged.") from None
        raise
