"""A loaded model with its family: the parts that are the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sordino.models import control_tokens
from sordino.models.deferred import Deferred
from sordino.models.family import AudioInputs, Family, Scope


class ExternalDecoder(Protocol):
    """A decoder that runs elsewhere than in transformers."""

    def greedy(
        self, prompts: Sequence[Tensor], stops: Sequence[int], max_new_tokens: int, suppressed: Sequence[int] = ()
    ) -> list[list[int]]:
        """Prompts (S, H) each -> the likeliest ids but the suppressed, cut before the first of `stops`."""


@dataclass
class SpeechModel:
    """A loaded model with its processor and family. `model` is always the stock transformers module.

    external_decoder: decodes instead of the model's decoder, which then has no layers; such a model only translates.
    deferred: where the weights are that are not read yet; None where all are.
    encode_batch: clips that its encoder is to take at once.
    """

    family: Family
    model: Any
    processor: Any
    path: str
    external_decoder: ExternalDecoder | None = None
    deferred: Deferred | None = None
    encode_batch: int = 1

    @property
    def device(self) -> torch.device:
        return self.deferred.device if self.deferred else torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the embeddings, which is the type that activations enter the decoder with."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def window_samples(self) -> int:
        """Longest clip the model takes whole, in samples."""
        return self.family.audio.window(self.processor)

    def part(self, name: str) -> nn.Module:
        """A named part: encoder, projector, decoder, embeddings, head."""
        return module_at(self.model, self.family.parts[name])

    def tensors_of(self, name: str) -> dict[str, Tensor]:
        """Weights and buffers of a part, without those of other parts that lie inside it."""
        path = f"{self.family.parts[name]}."
        inside = tuple(f"{part.removeprefix(path)}." for part in self.family.parts.values() if part.startswith(path))
        tensors = self.part(name).state_dict(keep_vars=True)
        return {inner: tensor for inner, tensor in tensors.items() if not inner.startswith(inside)}

    def layers(self, scope: Scope) -> nn.ModuleList:
        layers = module_at(self.model, self.family.stacks[scope].path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def layer_count(self, scope: Scope) -> int:
        """Layers of a scope; 0 where the family has no such stack."""
        return len(self.layers(scope)) if scope in self.family.stacks else 0

    def placeholder_id(self) -> int:
        return self.family.audio.placeholder(self.model.config)

    def stop_ids(self) -> list[int]:
        """Ids that end an answer, in decoding, training, and what is written for others: the family's stop tokens, and
        the ends of sequence in the checkpoint's generation config."""
        tokenizer = self.processor.tokenizer
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.family.chat.stop_tokens]
        ids = [i for i in ids if isinstance(i, int) and i != getattr(tokenizer, "unk_token_id", None)]
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = [ends] if isinstance(ends, int) else ends or []
        return list(dict.fromkeys([*ids, *map(int, ends)]))

    def suppressed_ids(self) -> list[int]:
        """Ids that greedy decoding never takes: `suppress_tokens` of the checkpoint's generation config."""
        return list(getattr(self.model.generation_config, "suppress_tokens", None) or ())

    @property
    def recomputing(self) -> Any:
        """What can compute its activations twice: the model, or where transformers' class does not, its decoder."""
        return self.model if self.model.supports_gradient_checkpointing else self.part("decoder")

    def pad_id(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.stop_ids()[0]

    def answer_ids(self, text: str, style: str = "chat") -> list[int]:
        """Token ids the model should produce: the text and the token that ends an answer in this style.

        Raises DataError for a text with a control token in it.
        """
        tokenizer = self.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(self.family.chat.answers_end_with[style])
        return [*control_tokens.encode(tokenizer, text), end]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def states(self, inputs: AudioInputs) -> list[Tensor]:
        """Encoder states (N, D) of every clip, on the model's device."""
        return self.family.audio.states(self.model, inputs)

    def project(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Encoder states (N, D) of every clip, of any device and type -> (A, H) each."""
        return self.family.audio.project(self.model, [rows.to(self.device, self.dtype) for rows in states])

    def embed(self, input_ids: Tensor, features: Sequence[Tensor], among: Tensor | None = None) -> Tensor:
        """Prompt embeddings with the audio in place. input_ids: (B, S); features: (A, H) of every clip -> (B, S, H).

        among: (B, S), where placeholders count; elsewhere they are tokens like any other.

        Raises ValueError where placeholders and features disagree: a prompt without its audio must not run.
        """
        is_audio = input_ids == self.placeholder_id()
        if among is not None:
            is_audio = is_audio & among
        rows = torch.cat(list(features))
        if is_audio.sum(-1).tolist() != [len(part) for part in features] or len(rows) == 0:
            raise ValueError(f"{int(is_audio.sum())} audio placeholders but {len(rows)} audio features")
        embeds: Tensor = self.model.get_input_embeddings()(input_ids)
        return embeds.masked_scatter(is_audio[..., None], rows.to(embeds.dtype))

    def inputs(
        self, input_ids: Tensor, mask: Tensor, features: Sequence[Tensor], among: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the decoder and `generate` take: embeddings as `embed` makes them, the attention mask (B, S), and what
        else the family's decoder wants."""
        embeds = self.embed(input_ids, features, among)
        is_audio = input_ids == self.placeholder_id()
        if among is not None:
            is_audio = is_audio & among
        beside = self.family.decoder.beside(self.model, input_ids.masked_fill(is_audio, self.pad_id()))
        return {"inputs_embeds": embeds, "attention_mask": mask, **beside}


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


def batches_by_length(lengths: Sequence[float], size: int) -> list[list[int]]:
    """Indices in batches of `size`, the shortest first; equals in their order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]
