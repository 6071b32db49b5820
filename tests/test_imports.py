"""Nothing imports to the right of `errors structures boxes -> config -> … -> multimodal -> tools`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deim"
MULTIMODAL = ROOT / "multimodal"
FILES = sorted(PACKAGE.rglob("*.py"))
MULTIMODAL_FILES = sorted(MULTIMODAL.rglob("*.py"))

FOUNDATION = {"errors", "structures", "boxes"}
NETWORK = FOUNDATION | {"config", "model"}
TRAINING = NETWORK | {"loss", "data", "engine", "chart_style"}
ASSESSMENT = TRAINING | {"evaluation"}
# The parts of deim that each part may import, itself left out.
ALLOWED = {
    "errors": set(),
    "structures": {"errors"},
    "boxes": {"errors", "structures"},
    "chart_style": set(),
    "config": FOUNDATION,
    "model": FOUNDATION | {"config"},
    "data": FOUNDATION | {"config", "chart_style"},
    "loss": NETWORK,
    "engine": NETWORK | {"loss", "data"},
    "evaluation": TRAINING,
    "analysis": ASSESSMENT,
    "sweep": ASSESSMENT,
    "export": ASSESSMENT,
    "baselines": ASSESSMENT,
    # `deim/__init__.py` names what users start with.
    "__init__": ASSESSMENT,
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that the file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=FILES, ids=names)
def path(request) -> Path:
    return request.param


def test_the_package_is_found():
    found = {part_of(file) for file in FILES}
    assert {"errors", "config", "model", "loss", "data", "engine", "evaluation"} <= found
    assert found <= set(ALLOWED), "a new part of deim: give it its place in ALLOWED"


def test_no_file_imports_to_its_right(path):
    part = part_of(path)
    allowed = ALLOWED[part] | {part}
    for line, module in imports(path):
        top, *rest = module.split(".")
        assert top not in ("tools", "multimodal", "tests"), f"{names(path)}:{line}: imports {module}"
        if top == "deim" and rest:
            assert rest[0] in allowed, f"{names(path)}:{line}: imports {module}"


def test_in_model_loss_and_data_only_build_reads_configs(path):
    if part_of(path) not in ("model", "loss", "data") or path.stem.split("_")[0] == "build":
        return
    found = [f"{names(path)}:{line}" for line, module in imports(path) if module.startswith("deim.config")]
    assert found == []


def test_multimodal_is_found():
    assert {"prompts.py", "text_encoder.py", "text_bank.py"} <= {file.name for file in MULTIMODAL_FILES}


@pytest.mark.parametrize("path", MULTIMODAL_FILES, ids=names)
def test_multimodal_imports_no_tool_and_no_test(path):
    for line, module in imports(path):
        assert module.split(".")[0] not in ("tools", "tests"), f"{names(path)}:{line}: imports {module}"


@pytest.mark.parametrize("path", MULTIMODAL_FILES, ids=names)
def test_multimodal_imports_clip_only_inside_functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    outer = [
        node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in inner
    ]
    modules = {getattr(node, "module", None) or node.names[0].name for node in outer}
    assert {module.split(".")[0] for module in modules}.isdisjoint({"open_clip", "huggingface_hub"})


@pytest.mark.parametrize("path", [*FILES, *MULTIMODAL_FILES], ids=names)
def test_no_file_prints(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [
        f"{names(path)}:{call.lineno}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert found == []
