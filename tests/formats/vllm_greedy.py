"""Runs in vLLM's environment: python vllm_greedy.py job.json out.json. Greedy ids of every clip, by vLLM on the CPU.

job: {model, tokens, clips: [{prompt, wave}]}, waves as .npy files at 16 kHz.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

if __name__ == "__main__":
    import numpy as np
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    one = {"audio": 1}
    engine = LLM(model=job["model"], dtype="bfloat16", max_model_len=512, enforce_eager=True, limit_mm_per_prompt=one)
    asked = [
        {"prompt": clip["prompt"], "multi_modal_data": {"audio": (np.load(clip["wave"]), 16_000)}}
        for clip in job["clips"]
    ]
    found = engine.generate(asked, SamplingParams(temperature=0, max_tokens=job["tokens"]))
    rows = [{"prompt": list(out.prompt_token_ids), "answer": list(out.outputs[0].token_ids)} for out in found]
    Path(sys.argv[2]).write_text(json.dumps(rows))
