"""Whether a loaded model and its processor belong together: tried once, on a second of silence, before anything is.

Files that were edited, or are of two models, load without a word and fail in the middle of the work, or prepare other
audio than the model was trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.errors import FamilyError, is_out_of_memory, reason

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel

REMEDY = "Copy config.json and the processor and tokenizer files of one model again."


def placeholder(speech: SpeechModel) -> str:
    """The token that stands for a clip in rendered prompts."""
    return str(speech.processor.tokenizer.convert_ids_to_tokens(speech.placeholder_id()))


def check(speech: SpeechModel) -> None:
    """Raise FamilyError where config.json names no token for audio, the tokenizer lacks those that end an answer, or
    the processor fails, or gives other counts than the model's family."""
    import numpy as np

    _check_tokens(speech)
    audio = speech.family.audio
    try:
        samples = min(speech.window_samples, audio.sampling_rate)
        silence = np.zeros(samples, np.float32)
        ids = audio.prepare(speech.processor, [silence], [placeholder(speech)]).input_ids[0]
    except Exception as error:  # whatever odd settings lead to
        if is_out_of_memory(error):
            raise
        problem = f"the processor in {speech.path} does not prepare audio ({reason(error)})."
        raise FamilyError(problem, REMEDY) from error
    count, expected = ids.count(speech.placeholder_id()), audio.tokens(samples)
    if samples < 1 or count != expected:
        problem = f"the processor in {speech.path} makes {count} audio tokens of {samples} samples, and not {expected}."
        raise FamilyError(problem, REMEDY)


def _check_tokens(speech: SpeechModel) -> None:
    tokenizer = speech.processor.tokenizer
    try:
        missing = [] if tokenizer.convert_tokens_to_ids(placeholder(speech)) == speech.placeholder_id() else ["audio"]
        stops = speech.stop_ids()
        ends = speech.family.chat.answers_end_with.values()
        rows = speech.model.config.get_text_config().vocab_size
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ends}
        missing += [token for token, number in ids.items() if number not in stops or number >= rows]
        speech.pad_id()
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError):
        missing = ["audio"]
    if missing:
        what = "no token for the place of audio" if "audio" in missing else f"no token {missing[0]}"
        raise FamilyError(f"config.json and the tokenizer in {speech.path} have {what} in common.", REMEDY)
