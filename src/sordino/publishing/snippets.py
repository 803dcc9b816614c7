"""How a model is loaded, in code that is right for its format: transformers, vLLM, sordino.

Each snippet translates `recording.wav` and prints the text. tests/publishing/test_snippets.py runs those of
transformers and sordino on an export of every family that has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sordino.models.family import Family, Prompt

TRANSFORMERS, VLLM, SORDINO = "transformers", "vLLM", "sordino"
# pip's names of what transformers needs beside itself to load a format; no entry: transformers does not load it
PACKAGES = {
    "bf16": (),
    "nf4": ("bitsandbytes",),
    "w4a16": ("compressed-tensors",),
    "w4a16-gptq": ("compressed-tensors",),
    "mixed": ("compressed-tensors",),
}
IN_VLLM = ("bf16", "w4a16", "w4a16-gptq")  # docs/formats.md
NEW_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """What is loaded and how it is asked.

    where: the model in code, a directory or a Hub id; is_hub: which of the two. form: an export format. prompt: its
    parts; rendered: as the model sees it. window: seconds of audio at once. rate: Hz.
    """

    family: Family
    form: str
    where: str
    is_hub: bool
    prompt: Prompt
    rendered: str
    window: float
    rate: int


def sections(asked: Asked) -> str:
    """Markdown: a heading and code for each library that loads the model."""
    parts = [*([_transformers(asked)] if asked.form in PACKAGES else [])]
    parts += [_vllm(asked)] if asked.form in IN_VLLM and _takes_text(asked) else []
    return "\n\n".join([*parts, _sordino(asked)])


def _takes_text(asked: Asked) -> bool:
    """Whether the family's stock processor takes the rendered prompt."""
    return "prompt" in asked.family.stock_call


def _transformers(asked: Asked) -> str:
    family = asked.family
    plain = asked.prompt.system is None and asked.prompt.example is None
    if not family.stock_call or not (plain or _takes_text(asked)):
        return (
            f"### {TRANSFORMERS}\n\n`{family.model_class}` of stock transformers loads the weights. How it is asked is "
            "in the base model's card; the prompt that this model was trained with is below."
        )
    packages = " ".join(('"transformers>=5.20"', "accelerate", "soundfile", *PACKAGES[asked.form]))
    lines = ["import soundfile"] if _takes_text(asked) else []
    lines += [
        f"from transformers import AutoProcessor, {family.model_class}",
        "",
        f"path = {_literal(asked.where)}{_here(asked)}",
        "processor = AutoProcessor.from_pretrained(path)",
        f'model = {family.model_class}.from_pretrained(path, dtype="auto", device_map="auto")',
        *(_wave(asked) if _takes_text(asked) else [f"instruction = {_literal(asked.prompt.instruction)}"]),
        family.stock_call,
        "inputs = inputs.to(model.device, model.dtype)",
        f"ids = model.generate(**inputs, max_new_tokens={NEW_TOKENS}, do_sample=False)",
        'print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])',
    ]
    return f"### {TRANSFORMERS}\n\n{_block('sh', f'pip install {packages}')}\n\n{_block('python', *lines)}"


def _vllm(asked: Asked) -> str:
    limits = 'dtype="bfloat16", max_model_len=2048, limit_mm_per_prompt={"audio": 1}'
    lines = [
        "import soundfile",
        "from vllm import LLM, SamplingParams",
        "",
        f"engine = LLM(model={_literal(asked.where)}, {limits})",
        *_wave(asked),
        'question = {"prompt": prompt, "multi_modal_data": {"audio": (wave, rate)}}',
        f"outputs = engine.generate([question], SamplingParams(temperature=0, max_tokens={NEW_TOKENS}))",
        "print(outputs[0].outputs[0].text)",
    ]
    note = f"Where vLLM has {asked.family.model_class}"
    if asked.form != "bf16":
        note += ", and on a GPU, or a CPU with AVX-512"
    serve = f"vllm serve {asked.where} --dtype bfloat16 --max-model-len 2048 --limit-mm-per-prompt '{{\"audio\": 1}}'"
    return f"### {VLLM}\n\n{note}:\n\n{_block('python', *lines)}\n\n{_block('sh', serve)}"


def _sordino(asked: Asked) -> str:
    lines = ["import sordino"]
    if asked.is_hub:
        lines += ["from huggingface_hub import snapshot_download"]
        loaded, place = f"snapshot_download({_literal(asked.where)})", asked.where.rpartition("/")[2]
        shell = [f"hf download {asked.where} --local-dir {place}"]
    else:
        loaded, place, shell = _literal(asked.where), asked.where, []
    lines += [
        "",
        f"model = sordino.load({loaded}){_here(asked)}",
        'print(sordino.translate(model, "recording.wav").text)  # any rate and length',
    ]
    shell.append(f"sordino translate {place} recording.wav")
    text = f"### {SORDINO}\n\n{_block('python', *lines)}\n\n{_block('sh', *shell)}"
    if asked.form.startswith("gguf"):
        text += (
            "\n\nThe decoder is a GGUF file for llama.cpp, which sordino runs through llama-cpp-python "
            "(`pip install 'sordino[gguf]'`); audio encoder and projector run in torch. The GGUF file holds no "
            "tokenizer and no audio encoder: llama.cpp's own programs, and what is built on them, do not run it."
        )
    return text


def _wave(asked: Asked) -> list[str]:
    return [
        f'wave, rate = soundfile.read("recording.wav", dtype="float32")  # mono, {asked.rate:,} Hz, at most '
        f"{asked.window:g} s",
        f"prompt = {_literal(asked.rendered)}",
    ]


def _here(asked: Asked) -> str:
    return "" if asked.is_hub else "  # this directory"


def _literal(text: str) -> str:
    """A Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
