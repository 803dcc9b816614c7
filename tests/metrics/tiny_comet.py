"""Tiny COMET checkpoints in the layout of the published ones, the same bytes of weights on every machine.

Every number comes from one seeded generator in the order of the tensors' names, and the tokenizer from a
vocabulary written out here, so neither depends on a library's initialisation. Runs in sordino's environment and in
unbabel-comet's.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel

SEED = 20
HIDDEN, LAYERS, POSITIONS = 32, 3, 66  # of which COMET leaves four unused
CHARACTERS = "abcdefghijklmnopqrstuvwxyzäöüßABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!()'-我们移除层翻译模型"
WORDS = (
    "▁the",
    "▁layers",
    "▁we",
    "▁die",
    "▁Schichten",
    "▁Wir",
    "▁a",
    "▁ein",
    "▁Modell",
    "▁model",
    "▁",
    "en",
    "ung",
    "er",
)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-R's ids 0 to 3
HYPERPARAMETERS: dict[str, Any] = {
    "encoder_model": "XLM-RoBERTa", "pool": "avg", "layer": "mix", "layer_transformation": "sparsemax",
    "layer_norm": False, "hidden_sizes": [48, 16], "activations": "Tanh", "final_activation": None, "dropout": 0.1,
    "nr_frozen_epochs": 0.3, "keep_embeddings_frozen": True, "batch_size": 4, "local_files_only": True,
    "load_pretrained_weights": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "wmt22": {},  # the settings of wmt22-comet-da
    "normed": {"layer_transformation": "softmax", "layer_norm": True, "activations": "sigmoid"},
    "cls": {"pool": "cls", "layer": 2, "final_activation": "Sigmoid"},
    "max": {"pool": "max", "layer_transformation": "sparsemax_patch", "hidden_sizes": [24]},
}


def build(directory: Path, variant: str = "wmt22") -> Path:
    """Write encoder/, hparams.yaml and checkpoints/model.ckpt; returns the path of model.ckpt."""
    encoder = directory / "encoder"
    (directory / "checkpoints").mkdir(parents=True)
    encoder.mkdir()
    size = tokenizer(encoder)
    config = XLMRobertaConfig(
        vocab_size=size, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=POSITIONS, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    config.save_pretrained(encoder)
    settings = HYPERPARAMETERS | VARIANTS[variant] | {"pretrained_model": str(encoder)}
    shapes = {
        f"encoder.model.{n}": t.shape for n, t in XLMRobertaModel(config, add_pooling_layer=False).state_dict().items()
    }
    widths = [6 * HIDDEN, *settings["hidden_sizes"], 1]
    for index, (inside, outside) in enumerate(pairwise(widths)):
        shapes |= {f"estimator.ff.{3 * index}.weight": (outside, inside), f"estimator.ff.{3 * index}.bias": (outside,)}
    if settings["layer"] == "mix":
        shapes |= {f"layerwise_attention.scalar_parameters.{index}": (1,) for index in range(LAYERS + 1)}
        shapes["layerwise_attention.gamma"] = (1,)
    generator = torch.Generator().manual_seed(SEED)
    state = {}
    for name in sorted(shapes):
        drawn = torch.randn(tuple(shapes[name]), generator=generator)
        positive = name.endswith(("LayerNorm.weight", "gamma"))
        state[name] = 1 + 0.1 * drawn if positive else 0.3 * drawn
    file = directory / "checkpoints" / "model.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": settings, "pytorch-lightning_version": "2.6.6", "epoch": 0,
                "global_step": 0, "loops": None}, file)  # fmt: skip
    (directory / "hparams.yaml").write_text(yaml.safe_dump(settings | {"class_identifier": "regression_metric"}))
    return file


def tokenizer(directory: Path) -> int:
    """Write tokenizer.json; returns the number of entries."""
    pieces = [*SPECIAL, *WORDS, *CHARACTERS]
    scores = (
        [0.0] * len(SPECIAL) + [-1.0 - len(WORDS[0]) / (1 + len(word)) for word in WORDS] + [-6.0] * len(CHARACTERS)
    )
    made = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.save(str(directory / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "XLMRobertaTokenizerFast", **names})
    )
    return made.get_vocab_size()
