"""Peak memory of training and of translating, predicted from shapes. No torch; formulas in FORMULAS.

What the allocator holds is predicted: weights, gradients, moments, activations. A CUDA context (about 0.5 GB) and, on
a CPU, Python with its libraries (about 0.8 GB) come on top, as does what fragmentation costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from sordino.checkpoint.reading import CHUNK_BYTES
from sordino.layouts import gguf, tables
from sordino.models import shapes
from sordino.models.shapes import Model, Shape

Precision = Literal["float32", "bfloat16", "bfloat16-mixed", "bfloat16-sharded"]
Optimizer = Literal["adamw", "adamw8bit"]

STATES_A_SECOND = 50  # encoder states: mel frames every 10 ms, halved by the second convolution
PROMPT_TOKENS = 40  # system, instruction and markers
ANSWER_TOKENS_A_SECOND = 4  # of speech; German and Chinese translations of talks stay below it
MOMENTS = 2  # AdamW's, in the weights' type
BLOCK, SMALLEST_8BIT = 256, 4096  # weights that share a scale of 8-bit moments; of a tensor that has such
LOGITS_BYTES = 256 * 2**20  # of the float32 logits that training holds at once, where memory is saved
COPY_BYTES = CHUNK_BYTES + CHUNK_BYTES // 2  # a chunk in 32 bits and its rounding; 16 bits are copied by the kernel
PACK_BYTES = 7  # a weight of the matrix at hand, while it is packed: 32 bits, 16 bits, and 4 bits twice
ROUND_BYTES = 5  # a weight of the matrix at hand: as it is, its integers, and those packed

FORMULAS = """
bytes on disk      sum over tensors of what their layout stores, and the header; files beside them as in the base model
  nf4              n/2 + n/64 + 4 n/16384 bytes for n weights, and about 1,250 a matrix: 4.127 bits a weight
  w4a16            n/2 + 2 n/128 (groups of 64 or 32 where 128 do not divide the columns), and 16 a matrix; decoder only
training           weights + gradients + moments + activations; the fused AdamW makes no temporaries
  float32          4 + 4 + 8 bytes a trained weight, 4 a frozen one
  bfloat16         2 + 2 + 4 bytes a trained weight, 2 a frozen one
  bfloat16-mixed   as float32; and 2 a matrix weight for autocast's copies, counted as activations
  adamw8bit        moments of 2 bytes a weight and 8 for each 256 of a tensor (Dettmers et al. 2022); small tensors 8
  N devices        weights, gradients and moments / N (FSDP2: Zhao et al. 2023), a frozen encoder whole; gathered: all
                   that lies around the layers and its gradients, two layers and the gradients of one, each in 4 bytes
                   (bfloat16, bfloat16-sharded: 2); bfloat16-sharded: weights, gradients and moments as float32;
                   loading takes the weights' share; to write it, the first process holds the whole in RAM
  QLoRA            nf4 (scope decoder: its layers only), the rest in recipe dtype; 4 + 4 + 8 bytes an adapter weight
  activations      b = 2 bytes (float32: 4); B clips at once (batch_size / accumulate), each of S tokens, E states
    decoder layer  B S (2 (4 + b) H + b (2 H + 2 Q + 2 K) + 4 b I); 5 H for 2 H with bfloat16-mixed; where
                   queries and keys are normed, B S (4 + b) (Q + K) more; Gemma's norms: 32 H + 8 Q + 12 K in all;
                   not counted: 4 B S^2 for each head, on a CPU in 16 bits
    encoder layer  B E b (9 D + 2 F), E more where padding is masked; nothing if the encoder is frozen
    convolutions   B E b (2 M + 6 D)
    checkpointing  a layer's input for each layer instead, and the largest layer once
    adapter        4 bytes for each input of an adapted layer
    head           (b + 12) V for each answer token; with checkpointing of no more than 256 MiB of logits; with the
                   teacher's probabilities (b + 20) V, of no more than 256 MiB of logits
teacher's          6 k + 2 bytes on disk for each answer token of the mix, 4 tokens a second of speech; k = logits.top
prune, bf16        24 MiB: weights go from file to file, a chunk at a time
nf4                and 7 bytes a weight of the largest matrix, while it is packed
w4a16              and 5; GPTQ holds the model instead, and 4 (2 H^2 + Q^2 + 4 I^2) of Hessians
translating        weights + B (S + max_new_tokens) 2 K b for each decoder layer + the widest intermediate result
  S                audio tokens + 40 of the prompt + 4 a second of the answer, for the longest clip (data.max_seconds,
                   else the model's window); E = 50 a second, of the whole window where audio is padded to it
""".strip()


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak on one device, and what they are made of. gathered: of other devices' weights, at once."""

    weights: int
    gradients: int = 0
    moments: int = 0
    activations: int = 0
    gathered: int = 0

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations + self.gathered

    def to_json(self) -> dict[str, int]:
        """Plain values for json.dumps."""
        names = ("weights", "gradients", "moments", "activations", "gathered")
        return {name: getattr(self, name) for name in names} | {"peak": self.peak}


@dataclass(frozen=True)
class Adapter:
    """rank; decoder_only: adapts the decoder alone; quantized: whether its base is held in nf4."""

    rank: int
    decoder_only: bool = False
    quantized: bool = True


@dataclass(frozen=True)
class Batch:
    """clips: run at once; seconds: of the longest clip; compared: with a teacher's probabilities, to train on."""

    clips: int
    seconds: float
    compared: bool = False

    def states(self, model: Model) -> int:
        """Encoder states of one clip."""
        seconds = model.window_seconds if model.family.tensors.pads_audio else min(self.seconds, model.window_seconds)
        return round(seconds * model.family.tensors.states_per_second)

    def answer(self) -> int:
        return round(self.seconds * ANSWER_TOKENS_A_SECOND)

    def tokens(self, model: Model) -> int:
        """Of one clip: audio, prompt, answer."""
        return int(self.states(model) / model.family.tensors.states_per_token) + PROMPT_TOKENS + self.answer()


def weights_bytes(model: Model, *, width: int, quantized: bool = False, kept: Collection[str] = ()) -> int:
    """Of a loaded model. width: bytes of what is not quantized; kept: parts that are not."""
    if not quantized:
        return width * model.parameters
    linear = [tensor for tensor in model.tensors if tensor.kind == "linear" and tensor.part not in kept]
    rest = model.parameters - shapes.count(linear)
    return tables.data_bytes(tables.stored(linear, "nf4")) + width * rest


def hybrid_bytes(model: Model, layout: str, *, width: int) -> int:
    """Of a loaded GGUF export: the decoder as stored, encoder and projector in `width` bytes."""
    decoder = [tensor for tensor in model.tensors if tensor.gguf]
    return tables.data_bytes(gguf.stored(decoder, layout)) + width * (model.parameters - shapes.count(decoder))


def full_training(
    model: Model,
    batch: Batch,
    precision: Precision,
    *,
    checkpointing: bool = False,
    frozen: Collection[str] = (),
    optimizer: Optimizer = "adamw",
    devices: int = 1,
) -> Memory:
    """Full-parameter training. frozen: parts that are not trained: encoder, projector, embeddings.

    devices: that the model is sharded over; batch: of one of them.
    """
    parts = {"encoder": "audio_encoder", "projector": "projector", "embeddings": "embedding"}
    still = {parts[name] for name in frozen}
    names = model.family.tensors
    heard = [t for t in model.tensors if names.runs(names.live_name(t.name))]
    trained = [t for t in heard if t.part not in still and "embed_positions" not in t.name]
    width = 2 if precision == "bfloat16" else 4
    computed: Precision = "bfloat16" if precision == "bfloat16-sharded" else precision
    held = _activations(model, batch, computed, checkpointing, None, "audio_encoder" not in still)
    if precision == "bfloat16-mixed":
        held += 2 * shapes.count(t for t in model.tensors if t.kind in ("linear", "head"))
    outside = shapes.count(t for t in model.tensors if t.part == "audio_encoder" and t.part in still)
    sharded = devices > 1 or precision == "bfloat16-sharded"
    count = shapes.count(trained)
    return Memory(
        weights=width * ((model.parameters - outside) // devices + outside),
        gradients=width * count // devices,
        moments=moment_bytes(trained, optimizer, width) // devices,
        activations=held,
        gathered=(2 if computed == "bfloat16" else 4) * _gathered(model, still) if sharded else 0,
    )


def moment_bytes(trained: Iterable[Shape], optimizer: Optimizer, width: int) -> int:
    """What AdamW remembers of weights of this width."""
    if optimizer == "adamw":
        return MOMENTS * width * shapes.count(trained)
    sizes = [tensor.elements for tensor in trained]
    return sum(MOMENTS * (n + 4 * -(-n // BLOCK) if n >= SMALLEST_8BIT else 4 * n) for n in sizes)


def _gathered(model: Model, still: Collection[str]) -> int:
    """Weights and gradients that are whole at once: all around the layers, and the layers at hand."""
    decoder = shapes.count(t for t in model.tensors if t.part == "decoder")
    around = shapes.count(t for t in model.tensors if t.part not in ("decoder", "audio_encoder"))
    return 2 * around + 3 * decoder // max(1, model.dims["decoder_layers"])


def _largest(tensors: Iterable[Shape]) -> int:
    return max((tensor.elements for tensor in tensors), default=0)


def adapter_training(
    model: Model,
    batch: Batch,
    precision: Precision,
    adapter: Adapter,
    *,
    width: int = 2,
    checkpointing: bool = False,
    optimizer: Optimizer = "adamw",
) -> Memory:
    """LoRA on a frozen base, in nf4 (QLoRA) or as it is. width: bytes of the base's other weights.

    Several devices hold the same; batch: of one of them.
    """
    lora = shapes.lora(model, adapter.rank, decoder_only=adapter.decoder_only)
    count = shapes.count(lora)
    held = _activations(model, batch, precision, checkpointing, adapter, not adapter.decoder_only)
    if adapter.quantized:  # one matrix at a time is unpacked
        held += width * _largest(t for t in model.tensors if t.kind == "linear")
    kept = ("audio_encoder", "projector") if adapter.decoder_only else ()
    return Memory(
        weights=weights_bytes(model, width=width, quantized=adapter.quantized, kept=kept) + 4 * count,
        gradients=4 * count,
        moments=moment_bytes(lora, optimizer, 4),
        activations=held,
    )


def translating(model: Model, batch: Batch, new_tokens: int, *, width: int = 2, quantized: bool = False) -> Memory:
    """Greedy decoding with a cache. new_tokens: the most that an answer may have."""
    dims, clips = model.dims, batch.clips
    states, prompt = batch.states(model), batch.tokens(model) - batch.answer()
    cache = clips * (prompt + new_tokens) * dims["decoder_layers"] * 2 * dims["K"] * width
    encoder = clips * states * width * (6 * dims["D"] + 2 * dims["F"])
    prefill = clips * prompt * width * (4 * dims["H"] + 3 * dims["I"])
    logits = clips * dims["V"] * (width + 4)
    widest = max(encoder, prefill + cache, logits + cache)
    if quantized:
        widest += width * _largest(t for t in model.tensors if t.kind == "linear")
    return Memory(weights=weights_bytes(model, width=width, quantized=quantized), activations=widest)


def exporting(model: Model, name: str, *, width: int = 2) -> int:
    """Peak bytes while a model is written from another's files in this format; width: bytes of the recipe's dtype.

    Packed formats take a matrix at a time. GPTQ runs the model, and holds the Hessians of one layer's inputs (of its
    attention, output, MLP and MLP's middle) and, while it is inverted, the largest three times more.
    """
    if name == "bf16" or name.startswith("gguf"):
        return COPY_BYTES
    if name == "w4a16-gptq":
        width_in, queries, inner = (model.dims[letter] for letter in "HQI")
        return width * model.parameters + 4 * (2 * width_in**2 + queries**2 + 4 * inner**2)
    each = PACK_BYTES if name == "nf4" else ROUND_BYTES
    return COPY_BYTES + each * _largest(t for t in model.tensors if t.kind == "linear")


def position_bytes(top: int) -> int:
    """Of a teacher's probabilities of `top` tokens and of all others together, in training/teacher_rows.py's files."""
    return 4 * top + 2 * (top + 1)


def resume_point(memory: Memory) -> int:
    """Bytes on disk of one resume point: the trained weights and their moments."""
    return memory.gradients + memory.moments


def _activations(
    model: Model, batch: Batch, precision: Precision, checkpointing: bool, adapter: Adapter | None, encoder: bool
) -> int:
    """What the backward pass needs of a batch, in bytes."""
    dims = model.dims
    b = 4 if precision == "float32" else 2
    stream = 2 if precision == "bfloat16" else 4  # bytes of the residual stream between layers
    width, inner, q, k = dims["H"], dims["I"], dims["Q"], dims["K"]
    tokens, states = batch.tokens(model), batch.states(model)
    copies = 5 if precision == "bfloat16-mixed" else 2  # autocast copies an input for each of q, k, v, gate, up
    layer = b * (copies * width + 2 * q + 2 * k) + 4 * b * inner  # bytes a token
    layer += model.family.tensors.norm_bytes(dims, b)
    encoder = encoder and dims["encoder_layers"] > 0
    front, inside = model.family.tensors.kept(dims, states)
    encoded = round(b * inside)  # bytes an encoder state
    if adapter:  # peft casts the input of every adapted layer to the adapter's float32
        layer += 4 * (3 * width + q + 2 * width + inner)
        encoded += 4 * (5 * dims["D"] + dims["F"]) if encoder else 0
    stacks = [(tokens * layer, tokens * stream * width, dims["decoder_layers"])]
    total = 0
    if not dims["encoder_layers"]:
        total += states * b * dims["D"]  # the projector's input
    if encoder:
        stacks += [(states * encoded, states * b * dims["D"], dims["encoder_layers"])]
        total += round(states * b * front)
    if checkpointing and encoder and not model.family.tensors.recomputes:
        each, _, layers = stacks.pop()
        total += each * layers
    if checkpointing:
        total += sum(between * layers for _, between, layers in stacks) + max(each for each, _, _ in stacks)
    else:
        total += sum(each * layers for each, _, layers in stacks)
    logits = batch.clips * batch.answer() * dims["V"]
    if checkpointing or batch.compared:
        logits = min(logits, LOGITS_BYTES // 4)
    return batch.clips * total + logits * (b + (20 if batch.compared else 12))
