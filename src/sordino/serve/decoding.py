"""A loaded model as the decoding thread uses it: clips with their questions in, translations out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.config import card
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import FamilyError, SordinoError
from sordino.models import prompts
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import generate
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from sordino.pipeline.device import device_of
from sordino.runtime.executor import parallel_map
from sordino.serve.catalog import Entry
from sordino.serve.errors import ApiError
from sordino.serve.settings import Settings

PROMPTS = 256  # rendered prompts that are kept


@dataclass(frozen=True)
class Question:
    """How a clip's translation is asked for. instruction, system: in place of those the model was trained with."""

    source: str
    target: str
    max_new_tokens: int
    instruction: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Answer:
    """tokens: generated ids; prompt_tokens: audio among them; cut: it did not come to its end."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    cut: bool


Asked = tuple[Clip, Question]


@dataclass(frozen=True)
class Prepared:
    """A clip that was encoded. most: tokens of its answer."""

    encoded: EncodedClip
    most: int


class ServedModel:
    """Both steps run in one thread: tokenizers and transformers' `generate` serve one at a time."""

    def __init__(self, entry: Entry, settings: Settings) -> None:
        """Loads the model. Raises FamilyError, ArtifactError, RecipeError."""
        self.entry = entry
        self.speech: SpeechModel = open_model(entry.path, device=device_of(settings.device), dtype=settings.dtype)
        self.section = card.read(Path(entry.path)).prompt
        self.features = Features(self.speech, None)
        self.prompts: dict[Question, str] = {}

    @property
    def window_samples(self) -> int:
        return self.speech.window_samples

    def prepare(self, asked: Sequence[Asked]) -> list[Prepared | Exception]:
        """Encoded clips, or what is wrong with this clip or question; the others do not suffer from it."""
        prompts = [self._prompt(question) for _, question in asked]
        readable = [(clip, prompt) for (clip, _), prompt in zip(asked, prompts, strict=True) if isinstance(prompt, str)]
        results = parallel_map(self.speech.device, self._encode, readable)
        outcomes = [next(results) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [
            outcome if isinstance(outcome, Exception) else Prepared(outcome, question.max_new_tokens)
            for outcome, (_, question) in zip(outcomes, asked, strict=True)
        ]

    def decode(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Greedy decoding goes on as it began, so the ids of a shorter answer are the first ones of a longer."""
        rows = generate(self.speech, [one.encoded for one in batch], max(one.most for one in batch))
        answers = []
        for one, ids in zip(batch, rows, strict=True):
            kept = ids[: one.most]
            text = self.speech.decode(kept)
            answers.append(Answer(text, tuple(kept), len(one.encoded.ids), cut=len(ids) >= one.most))
        return answers

    def _encode(self, asked: tuple[Clip, str]) -> EncodedClip | Exception:
        clip, prompt = asked
        try:
            encoded = self.features.encode(clip, prompt)
        except Exception as error:  # raised again for the request it belongs to
            return error
        placeholders = encoded.ids.count(self.speech.placeholder_id())
        expected = self.speech.family.audio.tokens(round(encoded.seconds * SAMPLE_RATE))
        if placeholders != expected:  # would fail the whole batch
            return ValueError(f"{placeholders} audio placeholders and {expected} audio features")
        return encoded

    def _prompt(self, question: Question) -> str | Exception:
        try:
            return self._render(replace(question, max_new_tokens=0))
        except SordinoError as error:
            return ApiError(400, str(error), param="messages", code="invalid_prompt")
        except Exception as error:
            return error

    def _render(self, question: Question) -> str:
        if question not in self.prompts:
            section = self.section
            texts = [text for text in (question.instruction, question.system) if text]
            for token in self._control_tokens() if texts else ():
                if any(token in text for text in texts):
                    raise FamilyError(f"the text holds {token}, which is a control token of the model.", "Take it out.")
            if question.system is not None:
                if not self.speech.family.chat.takes_system:
                    raise FamilyError("this model takes no system message beside audio.", "Leave it out.")
                section = replace(section, system=question.system)
            if question.instruction is not None:
                section = replace(section, instruction=question.instruction)
            if len(self.prompts) >= PROMPTS:
                self.prompts.clear()
            self.prompts[question] = prompts.render(self.speech, section, question.source, question.target)
        return self.prompts[question]

    def _control_tokens(self) -> set[str]:
        tokenizer = self.speech.processor.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {str(token) for token in added if token.special} | {str(t) for t in tokenizer.all_special_tokens}
        return special - {""}
