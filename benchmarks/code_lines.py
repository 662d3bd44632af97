"""Code lines of kgen and its command line, without docstrings, comments and blanks.

A line counts if a token that is neither a comment nor white space lies on it, so each
line of a string or an expression over several lines counts, but no docstring.

    python benchmarks/code_lines.py             # totals by folder
    python benchmarks/code_lines.py --files     # and every file, longest first
"""

import argparse
import ast
import collections
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHITE_SPACE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Returns the number of code lines of a module."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in WHITE_SPACE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", action="store_true", help="list every file")
    files = {
        path.relative_to(ROOT): code_lines(path.read_text())
        for folder in ("kgen", "cli")
        for path in ROOT.joinpath(folder).rglob("*.py")
    }
    if parser.parse_args().files:
        for path, count in sorted(files.items(), key=lambda item: -item[1]):
            print(f"{count:7,}  {path}")
        print()
    folders: collections.Counter[Path] = collections.Counter()
    for path, count in files.items():
        folders[path.parent] += count
    for folder, count in sorted(folders.items()):
        print(f"{count:7,}  {folder}/")
    print(f"{sum(files.values()):7,}  in {len(files)} files")


if __name__ == "__main__":
    main()
