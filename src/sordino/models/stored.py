"""A model directory without its weights in memory: its modules and configs, and where every weight lies on disk.

stored = stored.open_model("model")          # refuses damaged shards and weights that config.json does not promise
layers.prune(stored.speech, "decoder", kept) # surgery as on a loaded model: its tensors are on torch's meta device
stored.write_16bit(Path("pruned"))           # what is left, copied

A meta tensor has a shape and no data, and stays the same object whatever list its layer is moved to, so that what is
left after surgery knows where it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.checkpoint.reading import Checkpoint
from sordino.checkpoint.writing import FLOATING, Planned, Writer
from sordino.errors import FamilyError, reason
from sordino.models import embedded, registry, saving
from sordino.models.family import Family
from sordino.models.registry import PROCESSOR_FILES
from sordino.models.speech import SpeechModel
from sordino.runtime import foreign
from sordino.runtime.progress import byte_bar, note
from sordino.runtime.terminal import quoted

GENERATION = "generation_config.json"
NAMED_ALIKE = ("bitsandbytes", "compressed-tensors")  # quantizations that keep a weight's name, or add to it
MOST_IDS = 2**31
# the same weights once more, as some makers write them; an adapter that speech never runs
NOT_FETCHED = ["consolidated*.safetensors", "vision-lora/*"]


@dataclass(frozen=True)
class Stored:
    """speech: on the meta device; checkpoint: its weights; name_of: id of a meta tensor -> name in the checkpoint."""

    speech: SpeechModel
    checkpoint: Checkpoint
    name_of: Mapping[int, str]

    def sources(self) -> dict[str, str]:
        """Name to save a weight under -> its name in the checkpoint, for all that the model still has."""
        names: dict[int, str] = {}
        for name, tensor in self.speech.model.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), name)  # a tied weight once
        return {self.speech.family.tensors.saved_name(name): self.name_of[key] for key, name in names.items()}

    @property
    def ignored(self) -> dict[str, tuple[int, int]]:
        """Prefix of weights that the family leaves aside -> how many there are, and their bytes."""
        aside = {}
        for prefix in self.speech.family.tensors.ignored:
            sizes = [tensor.bytes for name, tensor in self.checkpoint.tensors.items() if name.startswith(prefix)]
            if sizes:
                aside[prefix] = len(sizes), sum(sizes)
        return aside

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, by its name in the checkpoint. Raises FamilyError for NaN and infinity."""
        tensor = self.checkpoint.read(name, rows)
        refuse_nonfinite(self.checkpoint.directory, [(name, tensor)])
        return tensor

    def describe(self, directory: Path, quantization: Any = None) -> None:
        """Write what lies beside the weights: config.json, how to generate, the processor's files and the terms of use.

        quantization: what config.json says of it, an object of transformers or a mapping.
        """
        model = self.speech.model
        model.config.dtype = "bfloat16"
        model.config.architectures = [type(model).__name__]
        if quantization is not None:
            model.config.quantization_config = quantization
        model.config.save_pretrained(str(directory))
        copy_processor(self.checkpoint.directory, directory)
        saving.complete(self.speech, directory)

    def write_16bit(self, directory: Path, label: str) -> None:
        """Write the model in bfloat16, a tensor at a time; stock `from_pretrained` loads it."""
        tensors, sources = self.checkpoint.tensors, self.sources()
        planned = {name: planned_16bit(self.checkpoint, source) for name, source in sources.items()}
        self.describe(directory)
        total = sum(tensors[source].bytes for source in sources.values())
        if self.ignored:
            aside = (f"{p.rstrip('.')} ({n} weights, {size / 1e9:.2f} GB)" for p, (n, size) in self.ignored.items())
            note(f"  left out: {', '.join(aside)}")
        with Writer(directory, planned) as out, byte_bar(label, total) as advance:
            for name in sorted(planned):  # as they lie in the files
                out.copy(name, self.checkpoint, sources[name])
                advance(tensors[sources[name]].bytes)


def planned_16bit(checkpoint: Checkpoint, name: str) -> Planned:
    """A stored tensor, floating types in bfloat16."""
    tensor = checkpoint.tensors[name]
    return Planned("BF16" if tensor.dtype in FLOATING else tensor.dtype, tensor.shape)


def on_meta(model_class: Any, config: Any) -> Any:
    """A model of a transformers class on torch's meta device: nothing is allocated."""
    with torch.device("meta"):
        return model_class(config)


def open_model(path: str, revision: str | None = None, build: Callable[[Any, Any], Any] = on_meta) -> Stored:
    """Look at a 16- or 32-bit model directory or Hub id, whose files are fetched. build: as of `skeleton`.

    Raises ArtifactError, naming the file, for shards that are damaged or not of one model, and FamilyError for an
    unknown family, a quantized model, a processor that does not load, and weights other than config.json promises.
    """
    directory = local(path, revision)
    family = registry.family_of(str(directory))
    if registry.read_config(str(directory)).get("quantization_config"):
        raise FamilyError(f"{path} is quantized already.", "Give the 16-bit model that it was made from.")
    checkpoint = embedded.open_checkpoint(family, directory)
    if not any((directory / name).is_file() for name in PROCESSOR_FILES[:2]):
        raise FamilyError(
            f"{path} holds no {PROCESSOR_FILES[0]}.", "Copy the processor and tokenizer files of the original model."
        )
    speech = SpeechModel(family, skeleton(family, directory, build), None, path)
    if family.adapter_flag:
        setattr(speech.model.config, family.adapter_flag, False)  # merged as it is read
    matched = _matched(speech, checkpoint)
    speech.processor = registry.load_processor(family, str(directory))
    return Stored(speech, checkpoint, matched)


def without_weights(path: str, dtype: torch.dtype, revision: str | None = None) -> SpeechModel:
    """A model's shape, words and prompts: on the meta device, where nothing can be computed. Raises as `skeleton`."""
    directory = local(path, revision)
    family = registry.family_of(str(directory))
    model = skeleton(family, directory).to(dtype).eval()
    return SpeechModel(family, model, registry.load_processor(family, str(directory)), path)


def skeleton(family: Family, directory: Path, build: Callable[[Any, Any], Any] = on_meta) -> Any:
    """The model that a directory's config.json describes, without its weights.

    build: (transformers class, config) -> a model whose weights are on the meta device.
    Raises FamilyError for a config.json or a generation config that transformers does not take.
    """
    import transformers

    model_class = getattr(transformers, family.model_class)
    file = directory / registry.CONFIG
    try:
        config = model_class.config_class.from_pretrained(str(directory))
        model = build(model_class, config)
        file = directory / GENERATION
        if os.path.lexists(file):
            _check_generation(
                foreign.read_json(file, raises=FamilyError, remedy="Copy the model again.", finite=False), file
            )
            model.generation_config = transformers.GenerationConfig.from_pretrained(str(directory))
    except FamilyError:
        raise
    except Exception as error:  # transformers checks both with error types of its own
        raise FamilyError(f"{file} does not describe a model ({reason(error)}).", "Copy the model again.") from error
    return model


def _check_generation(config: Mapping[str, Any], file: Path) -> None:
    """Raise FamilyError for token ids that are none. -1 is no id, as some have it."""
    for name, least in (("bos_token_id", -1), ("pad_token_id", -1), ("eos_token_id", 0), ("suppress_tokens", 0)):
        ids = config.get(name)
        each = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if any(type(i) is not int or not least <= i < MOST_IDS for i in each):
            raise FamilyError(f"{file}: {name} cannot be {quoted(ids, 60)}.", "Copy the model again.")


def refuse_other_weights(family: Family, directory: Path, checkpoint: Checkpoint) -> None:
    """Raise FamilyError, before anything is allocated, where a checkpoint lacks weights that its config.json promises.

    Of a quantized one only the names are compared, and only where it is known how they are stored.
    """
    speech = SpeechModel(family, skeleton(family, directory), None, str(directory))
    quantization = registry.read_config(str(directory)).get("quantization_config")
    if not quantization:
        _matched(speech, checkpoint)
    elif quantization.get("quant_method") in NAMED_ALIKE:
        stored_names = {family.tensors.live_name(name.removesuffix("_packed")) for name in checkpoint.tensors}
        expected = speech.model.state_dict(keep_vars=True)
        tied = {id(tensor) for name, tensor in expected.items() if name in stored_names}
        missing = [name for name, tensor in expected.items() if id(tensor) not in tied]
        check_names(directory, missing=map(family.tensors.saved_name, missing), unexpected=[], mismatched=[])


def _matched(speech: SpeechModel, checkpoint: Checkpoint) -> dict[int, str]:
    """id of each of the model's tensors -> its name in the checkpoint. Raises FamilyError where the two do not fit."""
    path, family = checkpoint.directory, speech.family
    names = {family.tensors.live_name(name): name for name in checkpoint.tensors}
    expected = speech.model.state_dict(keep_vars=True)
    matched = {id(tensor): names[name] for name, tensor in expected.items() if name in names}
    unused = re.compile("|".join(ignored_by_class(speech.model)) or r"(?!)")
    check_names(
        path,
        missing=[family.tensors.saved_name(name) for name, tensor in expected.items() if id(tensor) not in matched],
        unexpected=[
            names[name]
            for name in names.keys() - expected.keys()
            if not unused.search(name) and not name.startswith(family.tensors.ignored)
        ],
        mismatched=[
            f"'{names[name]}' of {checkpoint.file_of[names[name]].name}"
            for name, tensor in expected.items()
            if name in names and checkpoint.tensors[names[name]].shape != tuple(tensor.shape)
        ],
    )
    return matched


def ignored_by_class(model: Any) -> list[str]:
    """Expressions of weights that a transformers class expects in files and does not use."""
    lists = (getattr(module, "_keys_to_ignore_on_load_unexpected", None) for module in model.modules())
    return [expression for found in lists for expression in found or ()]


def local(path: str, revision: str | None = None) -> Path:
    """A model directory; a Hub id's safetensors and the files beside them are fetched first, unless they are there.

    Raises FamilyError for one that cannot be fetched.
    """
    if not registry.is_hub_id(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    weights = ("*.safetensors", "*.safetensors.index.json", registry.CONFIG, f"*{embedded.CONFIG}")
    patterns = [*weights, GENERATION, *PROCESSOR_FILES, *saving.TERMS]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns, ignore_patterns=NOT_FETCHED))
    except (OSError, ValueError) as error:
        raise registry.not_fetched(path, error) from error


def copy_processor(source: Path, directory: Path) -> None:
    """Copy the files that a processor is loaded from, byte for byte, and the terms of use beside them."""
    saving.copy_files(source, directory, (*PROCESSOR_FILES, *saving.TERMS))


def check_names(
    path: str | Path, *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]
) -> None:
    """Raise FamilyError where a checkpoint's weights are not those that its config.json describes.

    Weights beyond them do no harm, unless they are of a layer that config.json does not count.
    """
    lacking, others = sorted(missing), sorted(mismatched)
    if lacking:
        raise FamilyError(
            f"{path} lacks {len(lacking)} weights that its config.json promises, {lacking[0]} among them.",
            "The checkpoint is incomplete or its layer counts are wrong: make it again.",
        )
    dropped = sorted(key for key in unexpected if re.search(r"\.(?:layers|encoders)\.\d+\.", key))
    if dropped:
        raise FamilyError(
            f"{path} holds {len(dropped)} weights of layers that its config.json does not count, "
            f"{dropped[0]} among them.",
            "Pruned by editing config.json? Loading would drop the last layers: use 'sordino prune'.",
        )
    if others:
        raise FamilyError(
            f"{path} holds {len(others)} weights of other shapes than its config.json says, {others[0]} among them.",
            "Copy config.json and the weights of one model again.",
        )
