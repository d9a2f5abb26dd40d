"""The structure of the source: sizes of files and folders, the direction of imports, and no import circle."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.house.source import circles, code_files, imports, modules, public_classes

MOST_LINES = 350
MOST_FILES = 18

# From the ground up. A room is a folder of atb_models or a module that stands in it directly ("__init__": the public
# names). A room imports from itself and from lower floors, not from higher floors and not from the others of its floor.
FLOORS = (
    ("errors", "wording"),
    ("env", "files", "limits", "sampling_table"),
    ("json_file", "published"),
    ("demo", "log", "fetch", "machine"),
    ("ops", "ranks"),
    ("layers",),
    ("models",),
    ("graph", "text"),
    ("plan", "sampling_params", "outputs"),  # requests begin here: nothing further down knows of them
    ("engine",),
    ("__init__",),
    ("command", "profiler", "bounds", "doctor"),
    ("server", "env_report"),
    ("launcher", "clients", "quantizer", "modeltest"),
    ("launch",),
    ("cli",),
    ("__main__",),
)
# Rooms that stay apart although the floors would allow the import.
APART = (("launcher", "server"),)


def long_files(root: Path) -> list[str]:
    """Code files of more than MOST_LINES lines, with their number."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code_files(root)}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in lengths.items() if lines > MOST_LINES]


def full_folders(root: Path) -> list[str]:
    """Folders that hold more than MOST_FILES code files themselves, with their number."""
    counts = Counter(path.parent for path in code_files(root))
    return [f"{folder.relative_to(root)}: {files} files" for folder, files in counts.items() if files > MOST_FILES]


def room_of(module: str) -> str:
    """The room of a module of atb_models; of another package its name."""
    package, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if package == "atb_models" else package


def climbs(root: Path) -> dict[tuple[str, str], list[str]]:
    """(room, imported room) -> the imports of atb_models that break the order of FLOORS or APART.

    A room of atb_models that FLOORS does not name may import nothing and be imported by none; so may tests and tools.
    """
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    found: dict[tuple[str, str], list[str]] = {}
    for module, imported in imports(root).items():
        for other in imported if module.startswith("atb_models") else ():
            pair = room_of(module), room_of(other)
            allowed = floor.get(pair[0], -1) > floor.get(pair[1], len(FLOORS)) and pair not in APART
            if pair[0] != pair[1] and not allowed:
                found.setdefault(pair, []).append(f"{module} imports {other}")
    return found


def repeated_classes(root: Path) -> dict[str, list[str]]:
    """Names of public classes that several modules of atb_models and modeltest define -> these modules."""
    found: dict[str, list[str]] = {}
    for module, path in modules(root).items():
        if module.partition(".")[0] in ("atb_models", "modeltest"):
            for name in public_classes(path):
                found.setdefault(name, []).append(module)
    return {name: homes for name, homes in found.items() if len(homes) > 1}


def test_no_code_file_is_long(root: Path) -> None:
    assert long_files(root) == []


def test_no_folder_is_full(root: Path) -> None:
    assert full_folders(root) == []


def test_imports_go_down(root: Path) -> None:
    assert climbs(root) == {}


def test_every_room_has_one_floor(root: Path) -> None:
    named = [room for rooms in FLOORS for room in rooms]
    present = {room_of(module) for module in imports(root)} - {"tests", "tools"}
    assert sorted(named) == sorted(present)


def test_no_import_circle(root: Path) -> None:
    assert circles(imports(root)) == []


def test_a_class_name_stands_for_one_thing(root: Path) -> None:
    assert repeated_classes(root) == {}


# ---------------------------------------------------------------------------------- the checks find what they look for


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("name", ["atb_models/ops/native/heap.cpp", "tests/modeltest/deep/run.py", "examples/a.py"])
def test_a_long_file_is_found(tmp_path: Path, name: str) -> None:
    make(tmp_path, {name: "x\n" * 351, "tools/short.py": "x\n" * 350, "benchmarks/.venv/long.py": "x\n" * 351})
    assert long_files(tmp_path) == [f"{name}: 351 lines"]


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    full = {f"benchmarks/{n}.{suffix}": "" for n in range(9) for suffix in ("py", "cpp")} | {"benchmarks/util.h": ""}
    make(tmp_path, full | {f"tools/{n}.py": "" for n in range(18)} | {"tools/deeper/1.py": "", "tools/data.json": ""})
    assert full_folders(tmp_path) == ["benchmarks: 19 files"]


@pytest.mark.parametrize(
    "text",
    [
        "from atb_models.engine.llm import LLM",
        "import atb_models.engine.llm",
        "from ..engine.llm import LLM",
        "from ..engine import llm",
        "def late():\n    from atb_models.engine import llm",
        "if TYPE_CHECKING:\n    from atb_models.engine.llm import LLM",
        "importlib.import_module('atb_models.engine.llm')",
    ],
)
def test_an_import_that_climbs_is_found(tmp_path: Path, text: str) -> None:
    make(tmp_path, {"atb_models/layers/norm.py": text, "atb_models/engine/llm.py": "import atb_models.layers.norm"})
    assert climbs(tmp_path) == {("layers", "engine"): ["atb_models.layers.norm imports atb_models.engine.llm"]}


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("atb_models.errors", "atb_models.wording"),
        ("atb_models.launcher.main", "atb_models.server.app"),
        ("atb_models.newroom.a", "atb_models.errors"),
        ("atb_models.cli", "atb_models.newroom.a"),
        ("atb_models.cli", "tests.tiny"),
        ("atb_models.cli", "tools.demo"),
        ("atb_models.engine.llm", "modeltest.model"),
        ("atb_models.engine.llm", "atb_models"),
    ],
)
def test_an_import_that_the_floors_do_not_allow_is_found(tmp_path: Path, module: str, imported: str) -> None:
    files = {"atb_models/__init__.py": "", "tests/modeltest/model.py": "", "tests/tiny.py": "", "tools/demo.py": ""}
    for name in {module, imported} - {"atb_models", "tests.tiny", "tools.demo", "modeltest.model"}:
        files[name.replace(".", "/") + ".py"] = f"import {imported}" if name == module else ""
    pair = room_of(module), room_of(imported)
    assert climbs(make(tmp_path, files)) == {pair: [f"{module} imports {imported}"]}


def test_imports_that_go_down_are_not_found(tmp_path: Path) -> None:
    files = {"atb_models/engine/llm.py": "from atb_models.engine import batch\nfrom atb_models import errors, ops"}
    files |= {"atb_models/engine/batch.py": "", "atb_models/errors.py": "", "atb_models/ops/__init__.py": ""}
    assert climbs(make(tmp_path, files)) == {}


def test_an_import_circle_is_found(tmp_path: Path) -> None:
    files = {"atb_models/a.py": "from atb_models import b", "atb_models/b.py": "def f():\n    import atb_models.c.d"}
    files |= {"atb_models/c/d.py": "if TYPE_CHECKING:\n    from ..a import A", "atb_models/e.py": "import atb_models.a"}
    files |= {"tests/modeltest/run.py": "import modeltest.end", "tests/modeltest/end.py": "from .run import Run"}
    expected = [["atb_models.a", "atb_models.b", "atb_models.c.d"], ["modeltest.end", "modeltest.run"]]
    assert circles(imports(make(tmp_path, files))) == expected


def test_a_class_name_for_two_things_is_found(tmp_path: Path) -> None:
    files = {"atb_models/a.py": "class Row:\n    class Inner: ..."}
    files |= {"tests/modeltest/b.py": "class Row: ...\nclass _Own: ..."}
    files |= {"atb_models/c.py": "class _Own: ...\nclass Inner: ...", "tests/tiny.py": "class Row: ..."}
    assert repeated_classes(make(tmp_path, files)) == {"Row": ["atb_models.a", "modeltest.b"]}
