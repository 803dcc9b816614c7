"""Imports go one way, importing sordino is cheap, and architectures are named in models/ alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sordino
from sordino.models import registry
from sordino.pipeline import runner

ROOT = Path(sordino.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# a module imports its own level's package and the levels above it, nothing below
LEVELS = (
    {"runtime.terminal"},  # every error's message passes through it
    {"errors", "languages"},
    {"runtime"},
    {"config", "data", "checkpoint"},
    {"models"},
    {"layouts", "metrics"},
    {"measure"},
    {"pruning"},
    {"quantization", "vocabulary"},
    {"training", "formats", "report"},
    {"pipeline"},
    {"publishing"},
    {"stages"},
    {"inference"},
    {"serve"},
    {"submission"},
    {"api", "cli"},
)
# what the floors would allow and the design does not
NARROWER = {
    "report": {"errors", "languages", "metrics", "measure", "report"},
    "metrics": {"errors", "languages", "runtime", "models", "metrics"},  # a learned metric runs on a device
    "data": {"errors", "languages", "runtime", "data"},
}


def imports(file: Path) -> Iterator[str]:
    """Dotted names inside sordino that a file imports, anywhere in it: 'families.registry', 'artifact'."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("sordino.") for a in node.names if a.name.startswith("sordino."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            if node.module == "sordino":
                yield from (a.name for a in node.names)
            elif node.module and node.module.startswith("sordino."):
                module = node.module.removeprefix("sordino.")
                inside = {f.stem for f in (ROOT / module.replace(".", "/")).glob("*.py")}
                yield from (f"{module}.{a.name}" if a.name in inside else module for a in node.names)


def level(package: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if package in names)


def room(module: str) -> str:
    """The package that a module belongs to, or the module itself where it has a level of its own."""
    return module if any(module in names for names in LEVELS) else module.split(".", maxsplit=1)[0]


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_imports_go_one_way() -> None:
    wrong = []
    seen = 0
    for file in FILES:
        package = room(name_of(file).removesuffix(".py").replace("/", "."))
        if package == "__init__":
            continue
        for imported in imports(file):
            seen += 1
            other = room(imported)
            allowed = NARROWER.get(package, {other.split(".")[0]})
            fine = (other == package or level(other) < level(package)) and other.split(".")[0] in allowed
            if not fine:
                wrong.append(f"{name_of(file)} imports {imported}")
    assert not wrong
    assert seen > 150


def test_stages_do_not_import_each_other() -> None:
    """What two stages share lies below them."""
    wrong = []
    for file in (ROOT / "stages").glob("*.py"):
        others = (imported for imported in imports(file) if imported.split(".")[0] == "stages")
        wrong += [f"{file.stem} imports {other}" for other in others]
    assert not wrong


def test_the_rooms_of_the_stages() -> None:
    """`ls stages` is the method: one file a stage, nothing else."""
    files = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert files == set(runner.STAGES)


def code_strings(tree: ast.Module) -> Iterator[str]:
    """Identifiers and string constants; docstrings left out."""
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            docs.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def test_only_models_name_architectures() -> None:
    """No model type, class, module path, sub-configuration or tensor name of a family outside of models/."""
    classes = re.compile(
        r"\b(Qwen|Voxtral|Whisper|Llama|Mistral|Gemma|Granite)\w+\b|For(ConditionalGeneration|CausalLM)\b"
    )
    places = re.compile(
        r"\b(audio_tower|multi_modal_projector|language_model|embed_tokens\w*|embed_audio|lm_head|self_attn|q_proj)\b"
        r"|\b(text|audio|thinker|encoder|decoder)_config\b"
    )
    types = re.compile("|".join(rf"^{name}$" for name in registry.FAMILIES))
    wrong = []
    for file in FILES:
        if file.relative_to(ROOT).parts[0] == "models":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = list(code_strings(tree))
        wrong += [f"{name_of(file)}: {text}" for text in texts for p in (classes, places, types) if p.search(text)]
        compared = (n for n in ast.walk(tree) if isinstance(n, (ast.Compare, ast.MatchValue)))
        wrong += [f"{name_of(file)}: {ast.unparse(n)}" for n in compared if "model_type" in ast.unparse(n)]
    assert not wrong
    known = list(code_strings(ast.parse((ROOT / "models/qwen2_audio.py").read_text())))
    assert all(any(p.search(text) for text in known) for p in (classes, places, types)), (
        "patterns find what they look for"
    )


@pytest.mark.parametrize("statement", ["import sordino", "import sordino.cli; sordino.cli.overview()"])
def test_importing_is_cheap(statement: str) -> None:
    heavy = "torch", "transformers", "numpy", "soundfile", "sacrebleu"
    code = f"import sys; {statement}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_exports_little() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert len([node for node in tree.body if isinstance(node, (ast.Assign, ast.Import, ast.ImportFrom))]) <= 10
