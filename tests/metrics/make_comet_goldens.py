"""Writes comet_goldens.json with the original COMET. By hand, in an environment of its own:

python -m venv V && V/bin/pip install -r src/sordino/metrics/comet_requirements.txt
HF_HUB_OFFLINE=1 V/bin/python tests/metrics/make_comet_goldens.py
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from comet import load_from_checkpoint

from tests.metrics import tiny_comet

HERE = Path(__file__).parent
SOURCES = [
    "we remove the layers", "a model", "the model is small, we think.", "What is translation?", "layers", "a", "we",
    "the layers of a model that translation does not need are removed by hand", "Thank you!", "Who?", "one two three",
    "the end.", "a model", "is the model small?", "we (and they) remove", "no", "yes", "the " * 80, "A question?",
]  # fmt: skip
REFERENCES = [
    "Wir entfernen die Schichten", "ein Modell", "Das Modell ist klein, meinen wir.", "Was ist eine Übersetzung?",
    "Schichten", "ein", "wir", "die Schichten, die ein Modell nicht braucht, werden von Hand entfernt", "Danke!",
    "Wer?", "eins zwei drei", "das Ende.", "ein Modell", "ist das Modell klein?", "wir (und sie) entfernen",
    "nein", "ja",
    "die " * 80, "我们移除层",
]  # fmt: skip
HYPOTHESES = [
    "Wir entfernen jene Schichten", "Modell", "Das Modell ist klein.", "", "Schichten Schichten", "eine", "wir",
    "die Schichten eines Modells werden entfernt", "Dank!", "Wer", "eins zwei", "Ende", "ein Modell", "klein?",
    "wir entfernen", "no", "ja!", "der " * 70, "我们翻译模型",
]  # fmt: skip


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, lines in (("src", SOURCES), ("hyp", HYPOTHESES), ("ref", REFERENCES)):
            (root / name).write_text("".join(f"{line.strip()}\n" for line in lines), encoding="utf-8")
        for variant in tiny_comet.VARIANTS:
            checkpoint = tiny_comet.build(root / variant, variant)
            model = load_from_checkpoint(str(checkpoint), local_files_only=True)
            texts = zip(SOURCES, HYPOTHESES, REFERENCES, strict=True)
            samples = [{"src": s.strip(), "mt": h.strip(), "ref": r.strip()} for s, h, r in texts]
            whole = model.predict(samples, batch_size=16, gpus=0, progress_bar=False)
            score = [sys.executable, "-m", "comet.cli.score", "-s", "src", "-t", "hyp", "-r", "ref", "--gpus", "0"]
            command = [*score, "--quiet", "--model", str(checkpoint)]
            printed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
            lines = [line for line in printed.splitlines() if line.startswith("hyp\t")]
            found[variant] = {"float32": whole.scores, "system": whole.system_score, "comet-score": lines}
    origin = {
        "made by": "tests/metrics/make_comet_goldens.py",
        "float32": "comet.load_from_checkpoint(...).predict(samples, batch_size=16, gpus=0)",
        "comet-score": "what `comet-score --gpus 0` prints; that command halves the precision of the model",
        "unbabel-comet": version("unbabel-comet"), "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    texts = {"sources": SOURCES, "hypotheses": HYPOTHESES, "references": REFERENCES}
    value = {"origin": origin, "texts": texts, "variants": found}
    (HERE / "comet_goldens.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
