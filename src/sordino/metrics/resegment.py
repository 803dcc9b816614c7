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
from sordino.metrics.base import check_pairs

PROGRAM = "mweralign"
HAN = ("zh", "ja", "yue", "cantonese")  # whose characters the program takes apart by itself
SPACE = "▁"  # stands for a space of the text where every character is a word


def resegment(talks: Sequence[tuple[Sequence[str], Sequence[str]]], target: str) -> list[str]:
    """(texts, references) of each talk -> as many texts as there are references, in their order.

    Raises DataError for a blank reference, for what is no text, and where the program is missing or fails.
    """
    code = language_code(target)
    by_character = not has_spaces(target) and code not in HAN
    words = _characters if by_character else lambda text: " ".join(text.split())
    _check(talks)
    hypotheses = [words(" ".join(texts)) for texts, _ in talks]
    references = [words(line) for _, lines in talks for line in lines]
    ids = [str(number) for number, (_, lines) in enumerate(talks) for _ in lines]
    with tempfile.TemporaryDirectory() as place:
        files = {name: Path(place) / name for name in ("references", "hypotheses", "ids", "aligned")}
        for name, lines in (("references", references), ("hypotheses", hypotheses), ("ids", ids)):
            files[name].write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        command = [_program(), "-r", str(files["references"]), "-t", str(files["hypotheses"])]
        command += ["-d", str(files["ids"]), "-o", str(files["aligned"]), "-l", code]
        command += ["-m", "cj" if code in HAN else "none"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUTF8": "1"}
        )
        aligned = files["aligned"].read_text(encoding="utf-8") if files["aligned"].is_file() else ""
    texts = [line.strip() for line in aligned.removesuffix("\n").split("\n")]
    if done.returncode or len(texts) != len(references):
        message = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DataError(
            f"{PROGRAM} gave {len(texts)} lines for {len(references)} references, and its last words were: {message}",
            f"Try the program by itself: {PROGRAM} --help.",
        )
    return [text.replace(" ", "").replace(SPACE, " ").strip() for text in texts] if by_character else texts


def _characters(text: str) -> str:
    """Each character as a word; spaces as a character."""
    return " ".join(SPACE if character == " " else character for character in " ".join(text.split()))


def _check(talks: Sequence[tuple[Sequence[str], Sequence[str]]]) -> None:
    """Raise DataError for what the program would lose its place over."""
    references = [line for _, lines in talks for line in lines]
    check_pairs(references, references)
    texts = [text for texts, _ in talks for text in texts]
    check_pairs(texts, ["-"] * len(texts))


def version() -> str:
    """The program's, for the scores' signature."""
    done = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[-1].removeprefix(PROGRAM).strip()


def _program() -> str:
    """Beside this Python, or anywhere on the path."""
    program = shutil.which(
        PROGRAM, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if program is None:
        raise DataError(
            f"--segments: {PROGRAM} brings the translations onto the references' segments, and it is not installed.",
            f"pip install {PROGRAM} (GPL-3.0; sordino runs it as a program).",
        )
    return program
