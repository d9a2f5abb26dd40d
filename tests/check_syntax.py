"""Parses every Python file of the project as the oldest and the newest declared Python would.

python tests/check_syntax.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ((3, 10), (3, 12))


def python_files() -> list[Path]:
    """Every source file, without virtual environments and build folders."""
    skipped = {"build", "dist"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(ROOT / p for p in files if not any(part.startswith(".") or part in skipped for part in p.parts))


def main() -> int:
    """1 if a file does not fit a version; each such file is printed."""
    errors = 0
    for path in python_files():
        source = path.read_text(encoding="utf-8")
        for version in VERSIONS:
            try:
                ast.parse(source, str(path), feature_version=version)
            except SyntaxError as error:
                errors += 1
                print(f"{path}:{error.lineno}: Python {version[0]}.{version[1]}: {error.msg}")
    return min(errors, 1)


if __name__ == "__main__":
    sys.exit(main())
