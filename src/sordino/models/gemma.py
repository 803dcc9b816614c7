"""What the Gemma 4 families share: the processor without its pictures, the prompt, the decoder's shapes and surgery.

The stock processors want torchvision for images and videos that nobody sends here, so that a tokenizer, a feature
extractor and the chat template are opened by themselves; all of a processor's files stay as they are and travel with
the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import processors
from sordino.models.family import Gguf, Prompt

if TYPE_CHECKING:
    from torch import Tensor

AUDIO, AUDIO_START, AUDIO_END = "<|audio|>", "<|audio>", "<audio|>"
TURN_END, END = "<turn|>", "<eos>"
FULL, SLIDING = "full_attention", "sliding_attention"
AUDIO_TOKENS = 750  # of the longest clip, 30 s, where the processor's files state no other number
PATTERN = 6  # every so manieth layer is full where config.json does not list the types

DECODER = """
layers.#.input_layernorm.weight H
layers.#.layer_scalar 1
layers.#.mlp.down_proj.weight H I
layers.#.mlp.gate_proj.weight I H
layers.#.mlp.up_proj.weight I H
layers.#.post_attention_layernorm.weight H
layers.#.post_feedforward_layernorm.weight H
layers.#.pre_feedforward_layernorm.weight H
layers.#.self_attn.k_norm.weight keys_head
layers.#.self_attn.k_proj.weight K H
layers.#.self_attn.o_proj.weight H Q
layers.#.self_attn.q_norm.weight head_dim
layers.#.self_attn.q_proj.weight Q H
layers.#.self_attn.v_proj.weight values H
embed_tokens.weight V H
norm.weight H
"""


@dataclass(frozen=True)
class GemmaProcessor:
    """directory: where its files are, the pictures' among them; window: longest clip, in samples."""

    tokenizer: Any
    feature_extractor: Any
    window: int
    directory: Path

    def save_pretrained(self, directory: str) -> None:
        """Copy the processor's files, byte for byte."""
        from sordino.models.stored import copy_processor

        copy_processor(self.directory, Path(directory))


def open_processor(path: str, revision: str | None, extractor: str, samples_per_token: int) -> GemmaProcessor:
    """extractor: the transformers class. Raises FamilyError for a model that hears nothing, and for files of another
    Gemma's processor."""
    import transformers

    from sordino.models import registry

    directory = processors.fetched(path, revision)
    if not registry.read_config(str(directory)).get("audio_config"):
        raise FamilyError(f"{path} has no audio_config: this Gemma hears nothing.", "Take one that takes audio.")
    kind = getattr(transformers, extractor)
    settings, _ = kind.get_feature_extractor_dict(str(directory))
    named = settings.get("feature_extractor_type", extractor)
    if named != extractor:
        raise FamilyError(
            f"the processor in {path} prepares audio by {named}, and this model needs {extractor}.",
            "Copy the processor's files of the original model beside the weights.",
        )
    settings = processors.read(directory / "processor_config.json")
    return GemmaProcessor(
        transformers.AutoTokenizer.from_pretrained(str(directory)),
        kind.from_pretrained(str(directory)),
        int(settings.get("audio_seq_length", AUDIO_TOKENS)) * samples_per_token,
        directory,
    )


def render(processor: GemmaProcessor, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder, behind the instruction; ends where the answer begins.

    The chat template is the checkpoint's own, with thinking off: some write an empty thought before the answer.
    """
    if prompt.style == "base":
        before = f"{prompt.example[0]}\n{prompt.example[1]}\n" if prompt.example else ""
        return f"{processor.tokenizer.bos_token}{before}{AUDIO}{prompt.instruction}"
    turns: list[dict[str, Any]] = []
    if prompt.system is not None:
        turns.append({"role": "system", "content": prompt.system})
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": [{"type": "text", "text": f"{prompt.instruction} {sentence}"}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": translation}]})
    turns.append({"role": "user", "content": [{"type": "text", "text": prompt.instruction}, {"type": "audio"}]})
    text: str = processor.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    return text


def expanded_ids(processor: GemmaProcessor, prompts: Sequence[str], counts: Sequence[int]) -> list[list[int]]:
    """Ids of rendered prompts, their placeholder repeated `counts` times between the marks of audio.

    Raises ValueError for a prompt without exactly one placeholder.
    """
    texts = processors.with_audio(prompts, AUDIO, counts, (AUDIO_START, AUDIO_END))
    found = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [list(map(int, ids)) for ids in found]


def capped_logits(model: Any, hidden: Tensor) -> Tensor:
    """(..., H), normed -> (..., V), bent softly to stay between the caps."""
    import torch

    logits: Tensor = model.get_output_embeddings()(hidden)
    cap = model.config.get_text_config().final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


def take_embeddings(model: Any) -> None:
    """Let `generate` start from embeddings. The class passes them on, but its method does not name them, and
    transformers looks for the name."""

    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return type(self).prepare_inputs_for_generation(self, input_ids, inputs_embeds=inputs_embeds, **kwargs)

    model.prepare_inputs_for_generation = MethodType(prepare_inputs_for_generation, model)


def all_but_the_last(config: Any, count: int) -> Sequence[int]:
    """Layers that may go. The configuration class makes the last layer a full one, whatever it was."""
    return range(count - 1)


def renumbered(config: Any, keep: Sequence[int]) -> dict[str, Any]:
    """per_layer_config, which is keyed by the layers' indices."""
    own = {int(i): dict(values) for i, values in config.to_dict().get("per_layer_config", {}).items()}
    return {"per_layer_config": {new: own[old] for new, old in enumerate(keep) if old in own}}


def layer_type(text: Mapping[str, Any], index: int) -> str:
    """By config.json's text_config."""
    types = text.get("layer_types")
    if types:
        return str(types[index])
    last = index == text.get("num_hidden_layers", 0) - 1
    return FULL if last or (index + 1) % PATTERN == 0 else SLIDING


def layer_letters(dims: Mapping[str, int], text: Mapping[str, Any], index: int) -> dict[str, int]:
    """head_dim, Q, K and values (rows of the value projection, 0 where keys serve as values) of a layer; I. One that
    reads another's keys and values has none, and, where the config says so, a wider MLP."""
    head, heads = _of_layer({"head_dim": dims["head_dim"], "num_key_value_heads": dims["kv_heads"], **text}, index)
    keys_as_values = bool(text.get("attention_k_eq_v")) and layer_type(text, index) == FULL
    own = {"head_dim": head, "keys_head": head, "Q": dims["heads"] * head, "K": heads * head, "I": dims["I"]}
    own["values"] = 0 if keys_as_values else own["K"]
    if index < dims["decoder_layers"] - text.get("num_kv_shared_layers", 0):
        return own
    return own | {"K": 0, "values": 0, "keys_head": 0, "I": (2 if text.get("use_double_wide_mlp") else 1) * dims["I"]}


def _of_layer(text: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Size of a head and key-value heads of a layer."""
    full = layer_type(text, index) == FULL
    per_layer = text.get("per_layer_config")
    if per_layer is not None:
        own = {int(i): values for i, values in per_layer.items()}.get(index, {})
    else:  # as files have it that are older than per_layer_config
        own = {"head_dim": text.get("global_head_dim", 512)} if full else {}
        heads = text.get("num_global_key_value_heads")
        if text.get("attention_k_eq_v") and full and heads is not None:
            own["num_key_value_heads"] = heads
    return own.get("head_dim", text["head_dim"]), own.get("num_key_value_heads", text["num_key_value_heads"])


def gguf_keys(config: Any) -> dict[str, Any]:
    """llama.cpp's keys for what its kinds of layers have of their own: heads, rotary embeddings, windows."""
    text = config.to_dict()
    types = [layer_type(text, i) for i in range(text["num_hidden_layers"])]
    heads = [_of_layer(text, i) for i in range(len(types))]
    whole = heads[types.index(FULL)][0]
    rope = text["rope_parameters"]
    keys = {
        "attention.head_count_kv": [count for _, count in heads],
        "attention.sliding_window_pattern": [kind == SLIDING for kind in types],
        "attention.sliding_window": text["sliding_window"],
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": float(rope[FULL]["rope_theta"]),
        "rope.freq_base_swa": float(rope[SLIDING]["rope_theta"]),
        "rope.dimension_count": whole,
        "rope.dimension_count_swa": text["head_dim"],
    }
    for kind, size in (("key", whole), ("value", whole)):
        keys |= {f"attention.{kind}_length": size, f"attention.{kind}_length_swa": text["head_dim"]}
    cap = text["final_logit_softcapping"]
    return keys | ({"final_logit_softcapping": float(cap)} if cap is not None else {})


def gguf_constants(config: Any) -> dict[str, list[float]]:
    """What llama.cpp divides the frequencies of full layers by: the proportional ones turn but a part of a head."""
    text = config.to_dict()
    types = [layer_type(text, i) for i in range(text["num_hidden_layers"])]
    half = _of_layer(text, types.index(FULL))[0] // 2
    turned = int(2 * half * text["rope_parameters"][FULL]["partial_rotary_factor"] / 2)
    return {"rope_freqs.weight": [1.0] * turned + [1e30] * (half - turned)}


GGUF = Gguf(
    "gemma4",
    {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "layer_scalar": "layer_output_scale",
    },
    {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"},
    keys=gguf_keys,
    one_kind=False,
    constants=gguf_constants,
)  # fmt: skip


def norm_bytes(dims: Mapping[str, int], b: int) -> int:
    """Bytes a token that a layer's norms keep for training: four on the hidden states, three in the attention, each its
    input and what it makes of it before the weight, in 32 bits."""
    return 4 * 8 * dims["H"] + 8 * dims["Q"] + 12 * dims["K"]


def token_ids(ids: Mapping[str, int]) -> dict[str, int]:
    """A config's settings that name tokens, by a tokenizer's vocabulary."""
    return {
        "boi_token_id": ids["<|image>"], "eoi_token_id": ids["<image|>"], "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"], "boa_token_id": ids[AUDIO_START], "eoa_token_index": ids[AUDIO_END],
        "audio_token_id": ids[AUDIO],
    }  # fmt: skip


def describe_generation(model: Any, ids: Mapping[str, int]) -> None:
    """The generation config of the published models: ends, and what is never said."""
    model.generation_config.update(
        bos_token_id=ids["<bos>"],
        eos_token_id=[ids[END], ids[TURN_END]],
        pad_token_id=ids["<pad>"],
        suppress_tokens=[ids[AUDIO_END], ids["<image|>"]],
    )


def enliven(model: Any) -> None:
    """Random weights that make predictions differ: with the usual 0.02 they are nearly the same."""
    for name, weight in model.named_parameters():
        weight.normal_(0, 0.15) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
        if "q_norm" in name or "k_norm" in name:  # attention is not scaled: trained norms keep its scores small
            weight.mul_(0.5)
    for layer in model.model.language_model.layers:
        layer.layer_scalar.uniform_(0.6, 1)


def write_tokenizer(directory: Path) -> dict[str, int]:
    """A tokenizer of Gemma's kind for tiny models -> its vocabulary: special tokens, bytes, letters, a few merges."""
    from transformers import GemmaTokenizer

    special = [
        "<pad>", END, "<bos>", "<unk>", "<mask>", "<|turn>", TURN_END, "<|channel>", "<channel|>", AUDIO, AUDIO_START,
        AUDIO_END, "<|image|>", "<|image>", "<image|>", "<|video|>",
    ]  # fmt: skip
    named = {
        "audio_token": AUDIO, "boa_token": AUDIO_START, "eoa_token": AUDIO_END, "image_token": "<|image|>",
        "boi_token": "<|image>", "eoi_token": "<image|>", "sot_token": "<|turn>", "eot_token": TURN_END,
        "soc_token": "<|channel>", "eoc_token": "<channel|>", "video_token": "<|video|>",
    }  # fmt: skip
    letters = "▁\nabcdefghijklmnopqrstuvwxyz"
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("e", "r"), ("i", "n")]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=named)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(directory))
    return vocabulary


TEMPLATE = """{{- bos_token -}}
{%- for turn in messages -%}
    {{- '<|turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\\n' -}}
    {%- if turn['content'] is string -%}
        {{- turn['content'] | trim -}}
    {%- else -%}
        {%- for item in turn['content'] -%}
            {{- item['text'] | trim if item['type'] == 'text' else '<|' + item['type'] + '|>' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
    {%- if not enable_thinking | default(false) -%}
        {{- '<|channel>thought\\n<channel|>' -}}
    {%- endif -%}
{%- endif -%}"""
