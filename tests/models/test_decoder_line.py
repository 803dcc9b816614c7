"""What a decoder line does not run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sordino.errors import FamilyError
from sordino.models.decoder_line import open_line
from sordino.models.speech import SpeechModel
from tests import tiny


@pytest.mark.parametrize("family", ["audioflamingo3", "qwen2_audio", "qwen2_5_omni", "qwen3_asr"])
def test_layers_that_see_a_part_of_the_text_are_refused(pico: Callable[[str], SpeechModel], family: str) -> None:
    """A fine-tuned model's configuration may ask for them; a ranking without them would be another model's."""
    speech = tiny.fresh(pico(family))
    open_line(speech.family, speech)
    speech.part("decoder").config.layer_types[1] = "sliding_attention"
    with pytest.raises(FamilyError, match="are of the type 'sliding_attention'"):
        open_line(speech.family, speech)
