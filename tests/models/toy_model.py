"""The model class that docs/add_a_family.md takes to be in transformers: frames, perhaps an encoder, and Llama."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

FRAME, STATES, QUERIES = 640, 5, 2


class ToyConfig(PretrainedConfig):
    model_type = "toy"
    sub_configs: ClassVar = {"text_config": LlamaConfig}

    def __init__(
        self, text_config: Any = None, audio_token_id: int = 0, encoder_layers: int = 0, **kwargs: Any
    ) -> None:
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config or LlamaConfig()
        self.audio_token_id, self.encoder_layers = audio_token_id, encoder_layers
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class ToyLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.linear(hidden))


class ToyEncoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(FRAME, 64)
        self.layers = nn.ModuleList(ToyLayer() for _ in range(layers))

    def forward(self, frames: Tensor) -> Tensor:
        hidden: Tensor = self.reduce(frames)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class ToyQFormer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Linear(64, QUERIES, bias=False)
        self.linear = nn.Linear(64, width)

    def forward(self, states: Tensor) -> Tensor:
        windows = nn.functional.pad(states, (0, 0, 0, -len(states) % STATES)).view(-1, STATES, 64)
        weights = self.queries(windows).softmax(1)  # (windows, STATES, QUERIES)
        hidden: Tensor = self.linear(torch.einsum("wsd,wsq->wqd", windows, weights).flatten(0, 1))
        return hidden


class ToyModel(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        if config.encoder_layers:
            self.encoder, self.projector = ToyEncoder(config.encoder_layers), ToyQFormer(width)
        else:
            self.embed_audio = nn.Linear(FRAME, width)
        self.language_model = LlamaModel(config.text_config)


class ToyForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = ToyConfig
    base_model_prefix = ""
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.language_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if input_features is not None:
            assert input_ids is not None
            model, place = self.model, input_ids == self.config.audio_token_id
            encoded = model.projector(model.encoder(input_features)) if hasattr(model, "encoder") else None
            audio = model.embed_audio(input_features) if encoded is None else encoded
            inputs_embeds = self.get_input_embeddings()(input_ids).masked_scatter(place[..., None], audio)
            input_ids = None
        kwargs.pop("labels", None)
        kwargs.pop("logits_to_keep", None)
        kwargs.pop("return_dict", None)
        out = self.model.language_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)
