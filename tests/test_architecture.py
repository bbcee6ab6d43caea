"""The map of the package holds: imports point down, there are no cycles, and `import lmguide` stays light.

The table below is the one ARCHITECTURE.md draws. A new module gets a place in it first.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.programs import program

# From the ground up. A module may import what stands in the rows above its own, nothing of its own row or below.
LAYERS: dict[str, tuple[str, ...]] = {
    "checks and numbers": ("checks", "compact", "measures", "serialization"),
    "arithmetic": ("rules", "schedules"),
    "where it applies": ("gates",),
    "thresholds with a promise": ("calibration",),
    "descriptions of sources": ("contexts",),
    "descriptions of rewards": ("descriptions",),
    "descriptions of methods": ("guidance",),
    "one guided step": ("step",),
    "small models": ("bundled",),
    "forward passes": ("sources",),
    "what may follow": ("constraints",),
    "models that denoise a canvas": ("denoisers",),
    "parts for any loop": ("processors",),
    "making small models": ("training",),
    "engines": ("huggingface", "diffusion", "vllm"),
    "over any engine": ("trace", "search"),
    "public names": ("__init__",),
    "pages": ("pages",),
    "what people look at": ("eval", "report"),
    "what people try": ("playground",),
    "command line": ("cli",),
    "python -m lmguide": ("__main__",),
}
# Loaded when first used: `import lmguide` must do without them.
LATE = {
    "accelerate",
    "datasets",
    "gradio",
    "jinja2",
    "lark",
    "llguidance",
    "lm_eval",
    "matplotlib",
    "rich",
    "typer",
    "vllm",
    "xgrammar",
}
# Not declared, because naming one form of it would replace the other: vllm is what lmguide is plugged into.
PRESENT = {"vllm"}
# Modules from outside that `import lmguide` may load beyond those which every user of a transformers model has loaded.
OUTSIDE_MODULES = 10
LONGEST_FILE = 400

ROOT = Path(__file__).resolve().parents[1]
ROW = {module: row for row, modules in enumerate(LAYERS.values()) for module in modules}


class Import(NamedTuple):
    """One import statement's edge: who imports what, where, and whether for type checkers alone."""

    importer: str
    imported: str
    line: int
    for_types: bool


def test_every_module_has_a_place() -> None:
    unknown = sorted({_room(module) for module in _modules(ROOT)} - ROW.keys())
    assert not unknown, f"{unknown}: add each to LAYERS in {Path(__file__).name} and to ARCHITECTURE.md"


def test_imports_point_down() -> None:
    assert _upward(_edges(ROOT)) == []


def test_imports_have_no_cycle() -> None:
    assert _cycle(_edges(ROOT)) == []


def test_outside_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [item for name, items in project["optional-dependencies"].items() if name != "dev" for item in items]
    names = [re.match(r"[\w-]+", item) for item in project["dependencies"] + extras]
    declared = {match[0].replace("-", "_") for match in names if match}
    used = {edge.imported.partition(".")[0] for edge in _edges(ROOT)} - set(sys.stdlib_module_names)
    assert used - declared - PRESENT == set(), "name them under dependencies or an extra in pyproject.toml"


def test_files_are_short() -> None:
    files = [file for folder in ("lmguide", "tests", "scripts", "examples") for file in (ROOT / folder).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}, "one file, one thing"


def test_import_lmguide_loads_little() -> None:
    # Whoever has a model has loaded the modules that these four names stand for.
    code = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PreTrainedModel
before = set(sys.modules)
import lmguide
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    result = program([sys.executable, "-W", "error", "-c", code], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert "lmguide" in loaded
    assert LATE & {module.partition(".")[0] for module in loaded} == set()
    outside = [module for module in loaded if module.partition(".")[0] not in {"lmguide", *sys.stdlib_module_names}]
    assert len(outside) <= OUTSIDE_MODULES, outside


def test_the_check_finds_imports_that_point_up(tmp_path: Path) -> None:
    _write(tmp_path, "rules.py", "def f():\n    from lmguide.gates import Gate\n")
    _write(tmp_path, "gates.py", "import typing\nif typing.TYPE_CHECKING:\n    from .guidance import base\n")
    _write(tmp_path, "guidance/__init__.py", "from lmguide import gates, rules\nfrom . import base\n")
    _write(tmp_path, "guidance/base.py", "import torch\nfrom ..measures import entropy\n")
    _write(tmp_path, "measures.py", "import lmguide\n")
    _write(tmp_path, "huggingface/view.py", "import lmguide.vllm.plugin as plugin\n")
    _write(tmp_path, "vllm/plugin.py", "from lmguide.guidance import base\n")
    _write(tmp_path, "cli.py", "from lmguide import CFG\n")
    assert sorted(_upward(_edges(tmp_path))) == [
        "lmguide.gates:3 imports lmguide.guidance.base",
        "lmguide.huggingface.view:1 imports lmguide.vllm.plugin",
        "lmguide.measures:1 imports lmguide",
        "lmguide.rules:2 imports lmguide.gates",
    ]


def test_the_check_finds_cycles(tmp_path: Path) -> None:
    _write(tmp_path, "guidance/__init__.py", "from lmguide.guidance.base import Guidance\n")
    _write(tmp_path, "guidance/base.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import cfg\n")
    _write(tmp_path, "guidance/cfg.py", "from lmguide.guidance.base import Guidance\n")
    assert _cycle(_edges(tmp_path)) == []
    _write(tmp_path, "guidance/base.py", "def load():\n    from lmguide.guidance import cfg\n")
    assert set(_cycle(_edges(tmp_path))) == {"lmguide.guidance.base", "lmguide.guidance.cfg"}


def _modules(root: Path) -> dict[str, Path]:
    """Every module of the package under `root`, by its dotted name."""
    modules = {}
    for file in sorted((root / "lmguide").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def _room(module: str) -> str:
    """`lmguide.guidance.base` stands in the room `guidance`; the package itself is `__init__`.

    What `python -m` runs stands above everything, in whatever package it is.
    """
    return "__main__" if module.endswith(".__main__") else (module.split(".") + ["__init__"])[1]


def _edges(root: Path) -> list[Import]:
    """Every import in the package, wherever in a file it stands."""
    modules = _modules(root)
    return [edge for name, file in modules.items() for edge in _imports(name, file, modules)]


def _imports(name: str, file: Path, modules: dict[str, Path]) -> list[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(node) for guard in guards for statement in guard.body for node in ast.walk(statement)}
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    edges = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            # `from lmguide import rules` imports the module, `from lmguide import CFG` the package.
            targets = [inner if (inner := f"{base}.{alias.name}") in modules else base for alias in node.names]
        if isinstance(node, ast.Import | ast.ImportFrom):
            edges += [Import(name, target, node.lineno, id(node) in for_types) for target in targets]
    return edges


def _upward(edges: list[Import]) -> list[str]:
    """The imports between rooms that do not lead to a lower layer; what only type checkers see counts too."""
    wrong = []
    for edge in edges:
        importer, imported = _room(edge.importer), _room(edge.imported)
        if edge.imported.partition(".")[0] == "lmguide" and importer != imported and ROW[imported] >= ROW[importer]:
            wrong.append(f"{edge.importer}:{edge.line} imports {edge.imported}")
    return wrong


def _cycle(edges: list[Import]) -> list[str]:
    """The modules of one cycle of imports that happen at run time, or none."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
        if edge.imported.partition(".")[0] == "lmguide" and not edge.for_types:
            graph.setdefault(edge.importer, set()).add(edge.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _write(root: Path, path: str, text: str) -> None:
    file = root / "lmguide" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
