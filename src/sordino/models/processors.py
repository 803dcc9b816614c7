"""Processors that are opened in parts, because the stock ones want packages that nothing here needs.

A tokenizer and what the audio wants; all files of the stock processor stay as they are and travel with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted

if TYPE_CHECKING:
    from sordino.data.audio import Waveform


@dataclass(frozen=True)
class PartProcessor:
    """directory: where the processor's files are."""

    tokenizer: Any
    directory: Path

    def save_pretrained(self, directory: str) -> None:
        """Copy the processor's files, byte for byte."""
        from sordino.models.stored import copy_processor

        copy_processor(self.directory, Path(directory))


def refuse_long(clips: Sequence[Waveform], window: int) -> None:
    """Raise ValueError for a clip of more samples than the window."""
    longest = max(map(len, clips), default=0)
    if longest > window:
        raise ValueError(f"a clip of {longest} samples does not fit the window of {window}")


def with_audio(
    prompts: Sequence[str], placeholder: str, counts: Sequence[int], marks: tuple[str, str] = ("", "")
) -> list[str]:
    """Rendered prompts, their placeholder repeated `counts` times between marks.

    Raises ValueError for a prompt without exactly one placeholder.
    """
    texts = []
    for prompt, count in zip(prompts, counts, strict=True):
        if prompt.count(placeholder) != 1:
            raise ValueError(f"{prompt.count(placeholder)} audio placeholders in the prompt {quoted(prompt, 60)}")
        texts.append(prompt.replace(placeholder, marks[0] + placeholder * count + marks[1]))
    return texts


def fetched(path: str, revision: str | None) -> Path:
    """A model directory, or a Hub id's processor and config.json."""
    from sordino.models import registry
    from sordino.models.registry import PROCESSOR_FILES

    if not registry.is_hub_id(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=["config.json", *PROCESSOR_FILES]))


def open_tokenizer(directory: Path) -> Any:
    """With its chat template, which older processors keep in a file of their own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    if tokenizer.chat_template is None:
        tokenizer.chat_template = read(directory / "chat_template.json").get("chat_template")
    return tokenizer


def settings(directory: Path, inside: str, names: dict[str, str]) -> dict[str, Any]:
    """What prepares the audio, by its file or the processor's. inside: its key there; names: key -> class expected.

    Raises FileNotFoundError where neither file is there, FamilyError for another class.
    """
    whole, alone = read(directory / "processor_config.json"), read(directory / "preprocessor_config.json")
    found = whole.get(inside) or alone
    if not found:
        raise FileNotFoundError(f"no preprocessor_config.json in {directory}")
    for key, meant in names.items():
        for named in (found.get(key), whole.get(key)):
            if named not in (None, meant):
                raise FamilyError(
                    f"the processor in {directory} is a {named}, and this model needs {meant}.",
                    "Copy the processor's files of the original model beside the weights.",
                )
    return dict(found)


def read(file: Path) -> dict[str, Any]:
    """A JSON file; nothing where it is not there. Raises FamilyError for a damaged one."""
    return foreign.read_json(file, raises=FamilyError, remedy="Copy the model again.") if file.is_file() else {}
