"""What a model family is: facts and a few functions, so that nothing else names a class or a module path.

Shape letters of the project: B clips in a batch, M mel bins, T mel frames, A audio tokens of a clip,
D width of the audio tower's output, H hidden size of the decoder, S sequence length, V vocabulary.

One clip: waveform (n,) -> mel (M, T) -> tower (A, D) -> projector (A, H) -> takes the place of the A audio
placeholders among the prompt's embeddings -> decoder. `SpeechModel` ties a loaded model to its family and does
the parts that are the same for all of them; `compress/`, `training/` and `decoding.py` know only this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Scope = Literal["decoder", "encoder"]
Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, apart from the audio.

    style: "chat" renders the family's chat template; "base" is audio then instruction, for models without one.
    example: (sentence, translation) of a text-only turn pair before the question (one-shot), or None.
    """

    instruction: str
    system: str | None = None
    style: Literal["chat", "base"] = "chat"
    example: tuple[str, str] | None = None


@dataclass(frozen=True)
class AudioInputs:
    """Clips as the model takes them. input_ids: per clip, audio placeholders already expanded to A tokens.

    mel: (B, M, T) float32, padded to the family's window; frames: (B,) valid mel frames of each clip.
    """

    input_ids: list[list[int]]
    mel: Tensor
    frames: Tensor


@dataclass(frozen=True)
class Family:
    """Facts and functions of one audio LLM architecture, as transformers implements it."""

    model_type: str  # config.json's
    model_class: str  # name of the transformers class, imported when needed
    layers: Mapping[Scope, str]  # module path of each layer list
    layer_counts: Mapping[Scope, tuple[str, str]]  # (sub-config, attribute that counts the layers)
    layer_lists: Mapping[Scope, tuple[str, ...]]  # attributes of that sub-config with one item per layer
    parts: Mapping[str, str]  # encoder, projector, decoder, embeddings, head -> module path
    saved: Mapping[str, str]  # module path -> what stands for it in the names of checkpoints
    audio_token: Callable[[Any], int]  # model config -> id of the audio placeholder
    load_processor: Callable[[str, str | None], Any]  # directory or Hub id, revision
    render: Callable[[Any, Prompt], str]  # processor, prompt -> text with one audio placeholder
    encode: Callable[[Any, Sequence[Waveform], Sequence[str]], AudioInputs]  # processor, clips, rendered prompts
    audio_tokens: Callable[[int], int]  # valid mel frames -> A
    tower: Callable[[nn.Module, Tensor, Tensor], list[Tensor]]  # model, mel, frames -> B tensors (A, D)
    project: Callable[[nn.Module, Tensor], Tensor]  # model, (N, D) -> (N, H)
    keys_values: Callable[[Any, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]  # see llama_keys_values
    stop_tokens: tuple[str, ...]  # any of them ends an answer; the first is appended to training answers
    tiny: Callable[[str, int, int, int], None]  # write a random model: directory, decoder, encoder layers, seed
    answers_end_with: Mapping[str, str]  # prompt style -> stop token
    takes_system: bool  # whether a system prompt may stand beside audio
    fixed: tuple[str, ...] = ()  # module paths of tables that no training changes: sinusoidal positions
    gguf: str | None = None  # llama.cpp's name for the decoder's architecture; None where it has none

    def saved_name(self, name: str) -> str:
        """A weight's name in the model -> its name in a checkpoint."""
        return _renamed(name, self.saved.items())

    def live_name(self, name: str) -> str:
        """A weight's name in a checkpoint -> its name in the model, which some checkpoints have already."""
        return _renamed(name, ((old, new) for new, old in self.saved.items()))


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    return next((to + name[len(of) :] for of, to in prefixes if f"{name}.".startswith(f"{of}.")), name)


class ExternalDecoder(Protocol):
    """A decoder that runs elsewhere than in transformers."""

    def greedy(self, prompts: Sequence[Tensor], stops: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Prompts (S, H) each -> the likeliest ids, cut before the first of `stops`."""


@dataclass
class SpeechModel:
    """A loaded model with its processor and family. `model` is always the stock transformers module.

    external_decoder: decodes instead of the model's decoder, which then has no layers; such a model only translates.
    """

    family: Family
    model: Any
    processor: Any
    path: str
    external_decoder: ExternalDecoder | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the embeddings, which is the type that activations enter the decoder with."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def window_samples(self) -> int:
        """Longest clip the model hears whole, in samples at 16 kHz."""
        return int(self.processor.feature_extractor.n_samples)

    def part(self, name: str) -> nn.Module:
        """A named part: encoder, projector, decoder, embeddings, head."""
        return module_at(self.model, self.family.parts[name])

    def layers(self, scope: Scope) -> nn.ModuleList:
        found = module_at(self.model, self.family.layers[scope])
        assert isinstance(found, nn.ModuleList)
        return found

    def stop_ids(self) -> list[int]:
        tokenizer = self.processor.tokenizer
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.family.stop_tokens]
        return [i for i in ids if isinstance(i, int) and i != getattr(tokenizer, "unk_token_id", None)]

    def pad_id(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.stop_ids()[0]

    def answer_ids(self, text: str, style: str = "chat") -> list[int]:
        """Token ids the model should produce: the text and the token that ends an answer in this style."""
        tokenizer = self.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(self.family.answers_end_with[style])
        return [*tokenizer.encode(text, add_special_tokens=False), end]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def embed(self, input_ids: Tensor, features: Tensor, among: Tensor | None = None) -> Tensor:
        """Prompt embeddings with the audio in place. input_ids: (B, S); features: (sum of A, H) -> (B, S, H).

        among: (B, S), where placeholders count; elsewhere they are tokens like any other.

        Raises ValueError where placeholders and features disagree: a prompt without its audio must not run.
        """
        is_audio = input_ids == self.family.audio_token(self.model.config)
        if among is not None:
            is_audio = is_audio & among
        if int(is_audio.sum()) != features.shape[0] or features.shape[0] == 0:
            raise ValueError(f"{int(is_audio.sum())} audio placeholders but {features.shape[0]} audio features")
        embeds: Tensor = self.model.get_input_embeddings()(input_ids)
        return embeds.masked_scatter(is_audio[..., None], features.to(embeds.dtype))


def llama_keys_values(layer: Any, hidden: Tensor, cos_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What a decoder layer of the Llama line (Qwen2 too) puts into the cache for its input (B, S, H), and no more.

    cos_sin: (B, S, d) each, the rotary embedding's -> keys and values (B, heads, S, d).
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape).transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    cos, sin = (part.unsqueeze(1) for part in cos_sin)
    half = keys.shape[-1] // 2
    rotated = torch.cat([-keys[..., half:], keys[..., :half]], -1)
    return keys * cos + rotated * sin, values


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path."""
    return root.get_submodule(path)


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (ids (B, S), attention mask (B, S)), padded on the left.

    Left, because batched generation continues at the right end (right padding is silently wrong there);
    training uses the same layout so that both render and see the same sequence.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
