"""Sentences that exist everywhere: the docstrings of Python's standard library.

They are read from the source of its top-level modules by :mod:`ast`; nothing is imported. Which
sentences come out depends on the Python version only.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo.minilm import tokenize

SEQUENCE_LENGTH = 64  # tokens; every sample has the same length, as static calibration needs
EVALUATION_SAMPLES = 256
CALIBRATION_SAMPLES = 64
MINIMUM_WORDS = 5
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def docstring_sentences(library: Path | None = None) -> list[str]:
    """First sentences of all docstrings, each once, in an order that is fixed but mixed; read once.

    Args:
        library: folder of Python files; the standard library by default.
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    found = {sentence for path in sorted(folder.glob("*.py")) for sentence in _sentences(path)}
    return sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())


def write_sets(tokenizer: Tokenizer, *, evaluation: Path, calibration: Path) -> None:
    """Write both sets as ``.npz``; they share no sentence.

    Args:
        tokenizer: one that pads to :data:`SEQUENCE_LENGTH`.

    Raises:
        ValueError: if the library holds too few docstrings.
    """
    needed = EVALUATION_SAMPLES + CALIBRATION_SAMPLES
    sentences = docstring_sentences()[:needed]
    if len(sentences) < needed:
        raise ValueError(
            f"the standard library's source holds {len(sentences)} sentences, {needed} are needed"
        )
    np.savez(evaluation, **tokenize(tokenizer, sentences[:EVALUATION_SAMPLES]))  # type: ignore[arg-type]
    np.savez(calibration, **tokenize(tokenizer, sentences[EVALUATION_SAMPLES:]))  # type: ignore[arg-type]


def _sentences(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node)):
            sentence = " ".join(text.split("\n\n")[0].split())
            if len(sentence.split()) >= MINIMUM_WORDS:
                yield sentence
