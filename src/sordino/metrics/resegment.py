"""Translations of automatically cut talks, brought onto the segments of the references, so that they can be scored.

The words of a talk are aligned to all of its references at once so that the word error rate is least, and cut where the
references are (Matusov et al. 2005). That is done by mweralign, the packaged form of IWSLT's mwerSegmenter, run as a
program of its own: its licence is the GPL, so it is neither imported nor installed with sordino. Words are what stands
between spaces, and characters in languages without them, as in mwerSegmenter; mweralign's own default would fetch a
SentencePiece model from the net.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sordino.errors import DataError
from sordino.languages import has_spaces, language_code

PROGRAM = "mweralign"


def resegment(talks: Sequence[tuple[Sequence[str], Sequence[str]]], target: str) -> list[str]:
    """(texts, references) of each talk -> as many texts as there are references, in their order.

    Raises DataError where the program is missing or fails.
    """
    code = language_code(target)
    hypotheses = [" ".join(" ".join(text.split()) for text in texts) for texts, _ in talks]
    references = [" ".join(line.split()) for _, lines in talks for line in lines]
    ids = [str(number) for number, (_, lines) in enumerate(talks) for _ in lines]
    with tempfile.TemporaryDirectory() as place:
        files = {name: Path(place) / name for name in ("references", "hypotheses", "ids", "aligned")}
        for name, lines in (("references", references), ("hypotheses", hypotheses), ("ids", ids)):
            files[name].write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        words = [_program(), "-r", str(files["references"]), "-t", str(files["hypotheses"])]
        words += ["-d", str(files["ids"]), "-o", str(files["aligned"]), "-l", code]
        words += ["-m", "none" if has_spaces(target) else "cj"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUTF8": "1"})
        aligned = files["aligned"].read_text(encoding="utf-8") if files["aligned"].is_file() else ""
    found = [line.strip() for line in aligned.removesuffix("\n").split("\n")]
    if done.returncode or len(found) != len(references):
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise DataError(
            f"{PROGRAM} gave {len(found)} lines for {len(references)} references, and said: {said[0]}",
            "Is every line of the references filled?",
        )
    return found


def version() -> str:
    """The program's, for the scores' signature."""
    done = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[-1].removeprefix(PROGRAM).strip()


def _program() -> str:
    """Beside this Python, or anywhere on the path."""
    found = shutil.which(PROGRAM, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise DataError(
            f"--segments: {PROGRAM} brings the translations onto the references' segments, and it is not installed.",
            f"pip install {PROGRAM} (GPL-3.0; sordino runs it as a program).",
        )
    return found
