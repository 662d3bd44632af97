"""Rules for the prose of docstrings and comments, read from the sources themselves."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for folder in ("kgen", "cli", "benchmarks", "tests")
    for path in ROOT.joinpath(folder).rglob("*.py")
    if path != Path(__file__)
)
# A first line is a noun phrase or an imperative, never a relative clause.
RELATIVE = re.compile(
    r"(what(ever)?|who(m|se|ever)?|which(ever)?|those|that)\b", re.IGNORECASE
)
DIALECT = {
    "multi-hot rows": r"\brows? of ones\b",
    "lacks, does not have": (
        r"\b(has|have|had) not"
        r"( (all|any|an?|the|one|are|is|whose)\b|(?= ?[.,;:)\"'\]]))"
    ),
    "users with items": r"\b(people|persons?) (who )?(has|have|had)\b",
    "users, clients, callers": r"\bwho(so)?ever\b",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(tree: ast.AST) -> list[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def relative_clauses(source: str) -> list[str]:
    first_lines = [text.splitlines()[0] for text in docstrings(ast.parse(source))]
    return [line for line in first_lines if RELATIVE.match(line)]


def dialect(source: str) -> list[str]:
    """Phrases of the source beside the words to use instead."""
    return [
        f"{match.group()!r}: {better}"
        for better, pattern in DIALECT.items()
        for match in re.finditer(pattern, source, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_words_are_standard_english(path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module says what it is for"
    assert relative_clauses(source) == []
    assert dialect(source) == []


def test_the_rules_see_what_they_forbid():
    source = '''
"""What comes of it."""
class A:
    """Those that are left."""
    def f(self):
        """Returns that of the row."""
    async def g(self):
        """That is no noun phrase."""
def h():
    """Thatched roofs, whole numbers, whichness."""
'''
    assert relative_clauses(source) == [
        "What comes of it.",
        "Those that are left.",
        "That is no noun phrase.",
    ]
    assert [line.split("'")[1] for line in dialect("A row of ones, it has not.")] == [
        "row of ones",
        "has not",
    ]
    assert dialect("The user has not seen it; the server has not been started") == []
