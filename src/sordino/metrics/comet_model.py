"""COMET's network on the transformers of this environment: an XLM-R encoder, a mix of its layers, a regression head.

What: the estimator of Rei et al. (2020) as `unbabel-comet` 2.2.7 computes it, for checkpoints of the class
`regression_metric` (wmt20-comet-da, wmt22-comet-da and the like); no other class is accepted. That package needs
transformers 4 and cannot be installed beside this one; `sordino evaluate --comet-check` compares the two.

How: source s, translation t and reference r are encoded each for itself and pooled to one vector (H,);
the head scores the concatenation of t, r, t*r, |t-r|, t*s, |t-s| (6H,). The batches are those of the original
(segments sorted by the source's length, 16 at a time), so that padding rounds alike and even half precision agrees.

Checkpoints are pickles. They are read with torch's restricted unpickler, which runs no code.

Shapes: B segments, S tokens, H hidden size, L layers + 1.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.errors import DataError, SordinoError, is_out_of_memory
from sordino.metrics.comet_files import Files
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 16  # segments; the original's
CLASS = "regression_metric"
RESERVED_POSITIONS = 4  # XLM-R's two, and two more that the original takes off: 510 tokens of 514 positions
DEFAULTS = {  # the original's, for what a checkpoint leaves out
    "encoder_model": "XLM-RoBERTa", "pool": "avg", "layer": "mix", "layer_transformation": "softmax",
    "layer_norm": True, "activations": "Tanh", "final_activation": None,
}  # fmt: skip
POOLS = ("avg", "max", "cls", "default")
STAND_INS = ("pytorch_lightning.", "lightning.", "argparse.Namespace")  # training state that scoring does not read


class Inert:
    """Takes the place of a trainer's class named in a checkpoint; nothing of it is run or read."""


@dataclass
class CometModel:
    """A loaded checkpoint. `settings`: its hyperparameters; `cut`: texts that were longer than the encoder takes."""

    encoder: Any
    tokenizer: Any
    head: torch.nn.Sequential
    settings: Mapping[str, Any]
    weights: Tensor | None  # (L,) of the layers, where they are mixed
    gamma: Tensor | None  # (1,)
    device: str

    def __post_init__(self) -> None:
        self.cut: set[str] = set()
        self._kept: dict[tuple[str, ...], Tensor] = {}

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """Segment scores of one batch. The vectors of sources and references are kept: systems share them."""
        import torch

        with torch.inference_mode():
            source, reference = self._keep(sources), self._keep(references)
            answer = self.embed(hypotheses)  # (B, H)
            parts = [answer, reference]
            for other in (reference, source):
                parts += [answer * other, (answer - other).abs()]
            features = torch.cat(parts, dim=1)  # (B, 6H)
            return [
                float(value) for value in self.head(features.to(next(self.head.parameters()).dtype)).view(-1).tolist()
            ]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Sentence vectors (B, H)."""
        import torch

        encodings = self.tokenizer.encode_batch(list(texts))
        self.cut.update(text for text, encoding in zip(texts, encodings, strict=True) if encoding.overflowing)
        ids = torch.tensor([encoding.ids for encoding in encodings], device=self.device)  # (B, S)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=self.device)  # (B, S)
        out = self.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return self._pool(self._layers(out.hidden_states, mask), mask)

    def _keep(self, texts: Sequence[str]) -> Tensor:
        key = tuple(texts)
        if key not in self._kept:
            self._kept[key] = self.embed(texts)
        return self._kept[key]

    def _layers(self, layers: Sequence[Tensor], mask: Tensor) -> Tensor:
        """(B, S, H) from L of them: one layer, or gamma times the weighted sum, each normalised where asked."""
        if self.settings["pool"] == "default":
            return layers[-1]
        if self.weights is None or self.gamma is None:
            return layers[int(self.settings["layer"])]
        normed = bool(self.settings["layer_norm"])
        pieces = [w * (_sentence_norm(x, mask) if normed else x) for w, x in zip(self.weights, layers, strict=True)]
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        mixed: Tensor = self.gamma * total
        return mixed

    def _pool(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, S, H) -> (B, H), without the padding."""
        if self.settings["pool"] in ("cls", "default"):
            return embeddings[:, 0, :]
        padding = mask.eq(0).unsqueeze(-1)  # (B, S, 1)
        if self.settings["pool"] == "max":
            return embeddings.masked_fill(padding, -math.inf).amax(dim=1)
        return embeddings.masked_fill(padding, 0.0).sum(1) / mask.sum(1, keepdim=True).float()


def _sentence_norm(tensor: Tensor, mask: Tensor) -> Tensor:
    """Each sentence (S, H) to mean 0 and variance 1 over its tokens and features together."""
    batch, _, width = tensor.shape
    on = mask.float().unsqueeze(-1)
    count = mask.float().sum(1) * width
    mean = ((tensor * on).reshape(batch, -1).sum(1) / count).view(batch, 1, 1)
    variance = (((tensor * on - mean) * on) ** 2).reshape(batch, -1).sum(1) / count
    return (tensor - mean) / (variance + 1e-12).sqrt().view(batch, 1, 1)


def sparsemax(z: Tensor) -> Tensor:
    """Euclidean projection onto the simplex (Martins & Astudillo, 2016, algorithm 1). z: (L,)."""
    import torch

    z = z - z.max()
    ordered, _ = torch.sort(z, descending=True)
    sums = ordered.cumsum(0) - 1
    ranks = torch.arange(1, len(z) + 1, device=z.device, dtype=z.dtype)
    support = int((ranks * ordered > sums).sum())
    return (z - sums[support - 1] / support).clamp(min=0)


def load(files: Files, *, half: bool, device: str) -> CometModel:
    """Read a checkpoint. Raises DataError for another class, another layout, or a pickle of more than numbers."""
    try:
        return _load(files, half, device)
    except SordinoError:
        raise
    except Exception as error:  # files of others: configs, tokenizers and tensors fail in ways of their own
        if is_out_of_memory(error):
            raise
        problem = f"{files.settings.parent} does not load as a COMET model ({type(error).__name__}: {error})."
        raise DataError(problem, "Download it again.") from error


def _load(files: Files, half: bool, device: str) -> CometModel:
    import torch
    from tokenizers import Tokenizer
    from transformers import XLMRobertaConfig, XLMRobertaModel

    state, settings = _read(files)
    config = XLMRobertaConfig.from_pretrained(str(files.encoder("config.json", settings["pretrained_model"]).parent))
    tokenizer = Tokenizer.from_file(str(files.encoder("tokenizer.json", settings["pretrained_model"])))
    tokenizer.enable_truncation(config.max_position_embeddings - RESERVED_POSITIONS)
    tokenizer.enable_padding(pad_id=config.pad_token_id, pad_token=tokenizer.id_to_token(config.pad_token_id))
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    inside = {name.removeprefix("encoder.model."): t for name, t in state.items() if name.startswith("encoder.model.")}
    try:
        lost = encoder.load_state_dict(inside, strict=False).missing_keys
    except RuntimeError as error:
        raise DataError(f"{files.checkpoint}: the encoder is not the one of its config: {error}.") from error
    if lost:
        raise DataError(f"{files.checkpoint} has no weights for {', '.join(lost[:3])}.", "Download it again.")
    dtype = torch.float16 if half else torch.float32
    encoder, head = encoder.to(device, dtype).eval(), _head(state, settings, files).to(device, dtype).eval()
    weights = gamma = None
    if settings["layer"] == "mix":
        names = [f"layerwise_attention.scalar_parameters.{i}" for i in range(config.num_hidden_layers + 1)]
        raw = torch.cat([_tensor(state, name, files) for name in names]).to(device, dtype)
        # the original takes every other name, 'sparsemax_patch' among them, for softmax
        weights = sparsemax(raw) if settings["layer_transformation"] == "sparsemax" else raw.softmax(0)
        gamma = _tensor(state, "layerwise_attention.gamma", files).to(device, dtype)
    return CometModel(encoder, tokenizer, head, settings, weights, gamma, device)


def _read(files: Files) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings. The checkpoint's own settings count before those of hparams.yaml, as in the original."""
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    written = foreign.read_yaml(files.settings, remedy="Download it again.")
    kind = written.get("class_identifier") if isinstance(written, dict) else None
    if kind != CLASS:
        raise DataError(
            f"{files.settings} describes a model of class {quoted(kind, 60)}; only {CLASS!r} is supported.",
            "Use wmt22-comet-da or wmt20-comet-da; other classes need the unbabel-comet package.",
        )
    try:
        named = get_unsafe_globals_in_checkpoint(str(files.checkpoint))
        code = [name for name in named if not name.startswith(STAND_INS)]
        if code:
            raise DataError(
                f"{files.checkpoint} is not a checkpoint of plain weights: it asks for {quoted(code[0], 100)}.",
                "sordino runs no code out of a model file. Use a checkpoint as it was published.",
            )
        with safe_globals([(Inert, name) for name in named]):
            stored = torch.load(files.checkpoint, map_location="cpu", weights_only=True, mmap=True)
        state, own = dict(stored["state_dict"]), dict(stored.get("hyper_parameters") or {})
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        # torch's own words advise to run what the file holds
        raise DataError(
            f"{files.checkpoint} is not a checkpoint of plain weights ({type(error).__name__}).",
            "It may be damaged, or hold code, and sordino runs no code out of a model file. Download it again.",
        ) from error
    settings = DEFAULTS | written | own
    _check_settings(settings, files)
    return state, settings


def _check_settings(settings: Mapping[str, Any], files: Files) -> None:
    """Raise DataError for settings of another network than this one, or of other types."""
    wrong = settings["encoder_model"] != "XLM-RoBERTa" or settings["pool"] not in POOLS
    if wrong or not isinstance(settings.get("pretrained_model"), str):
        asked = {key: settings.get(key) for key in ("encoder_model", "pool", "pretrained_model")}
        problem = f"{files.settings}: unsupported settings {quoted(asked)}."
        raise DataError(problem, f"Pools: {', '.join(POOLS)}; XLM-RoBERTa.")
    layer = settings["layer"]
    if layer != "mix" and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise DataError(f"{files.settings}: layer {quoted(layer, 60)} is neither a number nor 'mix'.")


def _head(state: Mapping[str, Tensor], settings: Mapping[str, Any], files: Files) -> torch.nn.Sequential:
    """Linear layers with activations between them, and one after the last where the settings name it."""
    import torch

    prefix = "estimator.ff."
    numbers = sorted({int(name.split(".")[2]) for name in state if name.startswith(prefix)})
    modules: list[torch.nn.Module] = []
    for number in numbers:
        weight = _tensor(state, f"{prefix}{number}.weight", files)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": _tensor(state, f"{prefix}{number}.bias", files)})
        modules += [linear, _activation(settings["activations"], files)]
    if not modules:
        raise DataError(f"{files.checkpoint} has no regression head.", "Download it again.")
    modules.pop()
    if settings["final_activation"] is not None:
        modules.append(_activation(settings["final_activation"], files))
    return torch.nn.Sequential(*modules)


def _activation(name: object, files: Files) -> torch.nn.Module:
    import torch

    activations = {"tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}  # the original capitalises: it finds no ReLU
    key = name.lower() if isinstance(name, str) else ""
    if key not in activations:
        raise DataError(f"{files.settings}: unknown activation {quoted(name, 60)}.", "Tanh and Sigmoid are supported.")
    activation: torch.nn.Module = activations[key]()
    return activation


def _tensor(state: Mapping[str, Tensor], name: str, files: Files) -> Tensor:
    if name not in state:
        raise DataError(f"{files.checkpoint} has no {name}.", "It is not a checkpoint of this class, or damaged.")
    return state[name].float()
