"""What a model family is: facts and functions, so that nothing outside `models/` names a class, a path or a tensor.

Shape letters of the project: B clips in a batch, N encoder states of a clip, D their width, A audio tokens of a clip,
H hidden size of the decoder, S sequence length, V vocabulary.

One clip: waveform (n,) -> `audio.prepare` -> `audio.states` (N, D) -> `audio.project` (A, H) -> takes the place of the
A audio placeholders among the prompt's embeddings -> decoder. `speech.SpeechModel` ties a loaded model to its family.

A family is correct first and fast later: `decoder.line` may be missing, and then layers are ranked by plain generation;
`tensors` may be missing, and then sizes are not predicted. Importing a family's file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

Scope = Literal["decoder", "encoder"]


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
    """Clips as a family's encoder takes them; only the family looks inside `audio`.

    input_ids: per clip, audio placeholders already expanded to A tokens.
    """

    input_ids: list[list[int]]
    audio: tuple[Tensor, ...]


@dataclass(frozen=True)
class Audio:
    """From waveforms at `sampling_rate` to embeddings. Lists in and lists out: clips are never put in a row.

    states: what is computed once for a clip and cached; project: what training and merging may change afterwards.
    A family whose encoder cannot be split returns embeddings as states and projects them unchanged.
    window: of a loaded processor, the longest clip in samples. tokens: samples -> A.
    cached_parts: the parts of the model that the states depend on. batched: whether `states` runs several clips in one
    pass, of which none hears another or its padding; else it runs each by itself, and `encode_batch` changes nothing.
    """

    placeholder: Callable[[Any], int]  # model config -> id of the audio placeholder
    prepare: Callable[[Any, Sequence[Waveform], Sequence[str]], AudioInputs]  # processor, clips, rendered prompts
    states: Callable[[Any, AudioInputs], list[Tensor]]  # model, inputs -> (N, D) of every clip
    project: Callable[[Any, list[Tensor]], list[Tensor]]  # model, states -> (A, H) of every clip
    tokens: Callable[[int], int]
    window: Callable[[Any], int]
    sampling_rate: int = 16_000  # Hz
    cached_parts: tuple[str, ...] = ("encoder",)
    batched: bool = False


def _all_layers(config: Any, count: int) -> Sequence[int]:
    return range(count)


@dataclass(frozen=True)
class Stack:
    """A list of layers: where it is, and what of the configuration must follow when layers go.

    config: dotted name of the sub-config, "" for the whole. lists: its attributes with one item a layer. removable:
    (sub-config, count) -> layers that may go at all. resize: (sub-config, old indices that stay) -> the attributes that
    follow as well, with their values then; it changes nothing, and with all indices gives what a view puts back. fits:
    (sub-config, indices that stay) -> why they cannot stay without the others, or nothing. counted: attribute of the
    module around the list that holds the number of layers too. whole: why no layer may go, where that is so.
    """

    path: str
    config: str
    count: str
    lists: tuple[str, ...] = ()
    removable: Callable[[Any, int], Sequence[int]] = _all_layers
    resize: Callable[[Any, Sequence[int]], Mapping[str, Any]] | None = None
    fits: Callable[[Any, Sequence[int]], str] = lambda config, keep: ""
    counted: str = ""
    whole: str = ""


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The head of a plain decoder. hidden (..., H), normed -> (..., V)."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits


@dataclass(frozen=True)
class Decoder:
    """line: "module:class" of a decoder_line.DecoderLine, or None where a layer cannot be run by itself.

    logits: (model, normed hidden states) -> logits, with the scaling and soft-capping that the model was trained with.
    scaling: of a model, what transformers' generation leaves its logits undivided by; it matters where one samples.
    forget: takes out of a model what a generation leaves in it.
    beside: (model, ids with the pad token in place of audio (B, S)) -> what it wants beside the embeddings, by name.
    """

    line: str | None = None
    logits: Callable[[Any, Tensor], Tensor] = head_logits
    scaling: Callable[[Any], float] = lambda model: 1.0
    forget: Callable[[Any], None] = lambda model: None
    beside: Callable[[Any, Tensor], Mapping[str, Tensor]] = lambda model, ids: {}


@dataclass(frozen=True)
class Chat:
    """How an answer is asked for and where it ends."""

    render: Callable[[Any, Prompt], str]  # processor, prompt -> text with one audio placeholder
    stop_tokens: tuple[str, ...]  # any of them ends an answer
    answers_end_with: Mapping[str, str]  # prompt style -> stop token of training answers
    takes_system: bool  # whether a system prompt may stand beside audio
    takes_example: bool = True  # whether a text turn and its answer may stand before the question
    # prompt -> content of the system turn that a stock user's conversation must begin with, where that may be the chat
    # template's default; None where it may not
    default_system: Callable[[Prompt], Any] | None = None


@dataclass(frozen=True)
class Table:
    """Tensors under one prefix, a line each: `name dimensions`, # for a layer's index, letters of `Tensors.fields`.

    A row with a dimension of 0 is left out. layers: the field that counts #. per_layer: (letters of all, config.json,
    index) -> letters that this layer has otherwise.
    """

    rows: str
    layers: str | None = None
    per_layer: Callable[[Mapping[str, int], Mapping[str, Any], int], Mapping[str, int]] | None = None


@dataclass(frozen=True)
class Gguf:
    """What llama.cpp calls the decoder. names: of a layer's modules, or of its tensors that are no weights of modules;
    outside: of the decoder's other tensors.

    interleaved: rotary pairs are neighbours there, and half a head apart in transformers. keys: of the decoder's
    config, what this architecture's file says beside the usual sizes. one_kind: whether all layers have the same heads,
    rotary embeddings and full attention, in the usual keys; else `keys` says it. constants: of the decoder's config,
    further tensors of numbers that llama.cpp wants.
    """

    architecture: str
    names: Mapping[str, str]
    outside: Mapping[str, str]
    interleaved: bool = False
    keys: Callable[[Any], Mapping[str, Any]] = lambda text: {}
    one_kind: bool = True
    constants: Callable[[Any], Mapping[str, Sequence[float]]] = lambda text: {}


def _kept_by_whisper(dims: Mapping[str, int], states: int) -> tuple[float, float]:
    """Two convolutions; layers of attention, with a mask of all states, and an MLP."""
    return 2 * dims["M"] + 6 * dims["D"], 9 * dims["D"] + 2 * dims["F"] + states


@dataclass(frozen=True)
class Tensors:
    """Names and shapes of the weights, so that sizes are known from config.json alone.

    saved: module path -> what stands for it in the names of checkpoints. fixed: tables that no training changes; idle:
    parts that speech never runs, which are neither trained nor adapted. tied: whether head and embedding are one tensor
    where a config leaves it out; rows: further tables with a row for every token.
    tables: prefix in checkpoints -> rows, or empty where nobody has written them down: sizes are then not predicted.
    fields: letter -> (sub-config, field, default): a config leaves out what equals its class's default. letters:
    (config.json, those of the fields) -> further letters, and other values.
    window_seconds: of the fields. pads_audio: whether a shorter clip costs the whole window.
    norm_bytes: (letters, bytes of an activation) -> bytes a token that a decoder layer's norms keep for training.
    states_per_second: of audio; states_per_token: encoder states that one audio token stands for. kept: (fields, states
    of a clip) -> elements that going back needs of a state: before the encoder's layers, and in each of them;
    recomputes: whether the encoder's layers can be computed twice instead.
    """

    saved: Mapping[str, str]
    fixed: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()  # modules without tensors, # in place of every index that is there
    ignored: tuple[str, ...] = ()  # prefixes of weights that checkpoints hold and this model does not use
    tied: bool = False
    rows: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    fields: Mapping[str, tuple[str, str, int]] = field(default_factory=dict)
    letters: Callable[[Mapping[str, Any], Mapping[str, int]], Mapping[str, int]] = lambda config, dims: {}
    window_seconds: Callable[[Mapping[str, int]], float] = lambda dims: 30.0
    pads_audio: bool = False
    norm_bytes: Callable[[Mapping[str, int], int], int] = lambda dims, b: 2 * (4 + b) * dims["H"]
    states_per_second: float = 50.0
    states_per_token: float = 2.0
    kept: Callable[[Mapping[str, int], int], tuple[float, float]] = _kept_by_whisper
    recomputes: bool = True
    gguf: Gguf | None = None

    def saved_name(self, name: str) -> str:
        """A weight's name in the model -> its name in a checkpoint."""
        return _renamed(name, self.saved.items())

    def runs(self, name: str) -> bool:
        """Whether speech runs the module or weight of this name in the model."""
        return not any(f"{name}.".startswith(f"{part}.") for part in self.idle)

    def live_name(self, name: str) -> str:
        """A weight's name in a checkpoint -> its name in the model, which some checkpoints have already."""
        return _renamed(name, ((old, new) for new, old in self.saved.items()))


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    return next((to + name[len(of) :] for of, to in prefixes if f"{name}.".startswith(f"{of}.")), name)


@dataclass(frozen=True)
class Wrapping:
    """A configuration around the model's own in config.json, as engines want it.

    key: where the model's own lies there; around: what stands beside it.
    """

    key: str
    around: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One audio LLM architecture, as transformers implements it.

    parts: encoder, projector, decoder, embeddings, head -> module path; an encoder-free family has no encoder, neither
    here nor among `stacks`.
    tiny: writes a random model of under a million parameters: (directory, decoder layers, encoder layers, seed).
    check: (config.json, its path) -> raises FamilyError for a checkpoint of this type in a layout that is not read.
    adapter_flag: field of config.json that says whether a LoRA adapter belongs to the weights and lies beside them; one
    does where it is left out. adapter_folder: where it lies, "" for beside the weights themselves.
    ready: what a loaded model of the transformers class needs before it takes embeddings.
    stock_call: Python, for model cards: makes `inputs` with the stock `processor`, of the rendered `prompt` and `wave`
    at `rate`, or of `instruction` and recording.wav. '' where that processor needs packages that sordino does not.
    """

    model_type: str  # config.json's
    model_class: str  # name of the transformers class, imported when needed
    parts: Mapping[str, str]
    stacks: Mapping[Scope, Stack]
    audio: Audio
    decoder: Decoder
    chat: Chat
    tensors: Tensors
    load_processor: Callable[[str, str | None], Any]  # directory or Hub id, revision
    tiny: Callable[[str, int, int, int], None]
    check: Callable[[Mapping[str, Any], str], None] = lambda config, path: None
    adapter_flag: str = ""
    adapter_folder: str = ""
    wrapping: Wrapping | None = None
    ready: Callable[[Any], None] = lambda model: None
    stock_call: str = ""

    def gguf_name(self, name: str) -> str | None:
        """llama.cpp's name for a decoder's tensor, by its name in the model or in a checkpoint; None for another's."""
        gguf, live = self.tensors.gguf, self.tensors.live_name(name)
        if gguf is None:
            return None
        if live.startswith(f"{self.parts['head']}."):
            return f"output.{live.rpartition('.')[2]}"
        layers, decoder = f"{self.stacks['decoder'].path}.", f"{self.parts['decoder']}."
        if live.startswith(layers):
            index, _, inner = live.removeprefix(layers).partition(".")
            if inner in gguf.names:
                return f"blk.{index}.{gguf.names[inner]}.weight"
            module, _, kind = inner.rpartition(".")
            return f"blk.{index}.{gguf.names[module]}.{kind}" if module in gguf.names else None
        return gguf.outside.get(live.removeprefix(decoder)) if live.startswith(decoder) else None

    def part_at(self, name: str) -> str | None:
        """The part that a module or weight of the model lies in, by its name; the innermost."""
        around = [part for part, path in self.parts.items() if f"{name}.".startswith(f"{path}.")]
        return max(around, key=lambda part: len(self.parts[part]), default=None)

    def core(self, config: Any) -> Any:
        """The model's own configuration, of config.json or of an object that holds it; sub-configs are those of it."""
        if self.wrapping is None:
            return config
        get = config.get if isinstance(config, Mapping) else partial(getattr, config)
        return get(self.wrapping.key, None) or config

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The stacks that layers may be removed from: decoder first."""
        return tuple(scope for scope, stack in self.stacks.items() if not stack.whole)
