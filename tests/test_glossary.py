"""Identifiers use the terms of the glossary in CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path for room in ("deim", "multimodal", "tools", "tests") for path in (ROOT / room).rglob("*.py")
)

TERMS = {
    "subject": "task",
    "setting": "run context",
    "run parts": "run context",
    "step parts": "run context",
    "subject parts": "run context",
    "found": "detections",
    "truth boxes": "GroundTruthTable",
    "num right": "tp",
    "is right": "is_tp",
    "num false": "fp",
    "is false": "is_fp",
    "num missed": "fn",
    "is missed": "is_fn",
    "shipped": "kept",
    "finding": "issue, or detector_outputs",
    "tree": "report, checkpoint, schema, node",
    "in words": "summary",
    "refused": "skipped",
    "assess": "evaluate",
    "scored": "EvaluationResult",
    "evidence": "ablation",
    "controls": "variants",
    "world": "DistributedContext",
    "gains": "improvements, deltas",
    "way": "the name of the thing",
    "own": "the name of the thing",
    "one": "the name of the thing",
    "wanted": "the name of the thing",
    "left out": "the name of the thing",
    "of class": "the name of the thing",
    "picture": "image",
    "photograph": "image",
    "is plain": "is_rgb8",
    "taken for": "predicted_as",
    "watched": "tracked_pair",
    "bare model": "unwrap_model",
    "settle folder": "finalize_run_dir",
    "recompute": "activation_checkpointing",
    "suppression": "nms",
}
"""Refused words and sequences of words, with their replacement; also their plurals, except `ones`."""

BRITISH = re.compile(
    r"colour|centre|grey|behaviour|neighbour|labelled|cancelled|catalogue|artefact|favour|"
    r"(analy|normali|initiali|optimi|locali|seriali|organi|recogni|summari|minimi|maximi|visuali|generali|"
    r"resi|equali|quanti|toleri|prioriti|tokeni|regulari|discreti|finali|utili|emphasi)s(e|ed|es|ing|ation|er)s?$"
)
ALLOWED = {
    "FileNotFoundError": "Python's",
    "ModuleNotFoundError": "Python's",
    "PackageNotFoundError": "Python's",
    "ElementTree": "Python's",
    "cKDTree": "SciPy's",
    "KDTree": "SciPy's",
    "world_size": "torch's",
    "get_world_size": "torch's",
    "WORLD_SIZE": "torchrun's",
    "one_hot": "the term of the field",
    "OneCycleLR": "torch's",
    "OneOf": "albumentations'",
    "all_or_none": "a phrase",
    "shipped_configs_dir": "configs that are shipped with the package",
    "shipped_configs": "configs that are shipped with the package",
    "list_shipped": "configs that are shipped with the package",
    "resized": "not British",
    "resize": "not British",
    "resizes": "not British",
    "resizing": "not British",
}
"""Identifiers that may contain a refused word, and why."""
OLD_KEYS = {"migration.py", "test_migration.py", "test_first_version.py", "test_glossary.py"}
"""Names of files with old keys, which they translate."""


@dataclass(frozen=True)
class Identifier:
    """A name and where it stands."""

    name: str
    line: int
    is_verb: bool = False


def identifiers(path: Path) -> Iterator[Identifier]:
    """Yield the identifiers of a file, dictionary keys that could be identifiers included."""
    if path.stem != "__init__":
        yield Identifier(path.stem, 1)
    has_old_keys = path.name in OLD_KEYS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name():
                yield Identifier(node.id, line)
            case ast.Attribute():
                yield Identifier(node.attr, line)
            case ast.keyword() if has_old_keys:
                continue
            case ast.arg() | ast.keyword() if node.arg is not None:
                yield Identifier(node.arg, line)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield Identifier(node.name, line, is_verb=not node.decorator_list)  # a property is a noun
            case ast.ClassDef():
                yield Identifier(node.name, line)
            case ast.alias():
                yield from (Identifier(part, line) for part in (node.asname or node.name).split("."))
            case ast.Dict() if not has_old_keys:
                yield from (Identifier(key, line) for key in map(text_of, node.keys) if key.isidentifier())
            case ast.Subscript() if not has_old_keys and text_of(node.slice).isidentifier():
                yield Identifier(text_of(node.slice), line)


def text_of(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def words_of(name: str) -> list[str]:
    """Split a name at underscores and capitals, in lower case."""
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    return [word.lower() for word in re.split(r"[_\s]+", spaced) if word]


def replaced_term(identifier: Identifier) -> str | None:
    """Return the glossary's word that an identifier contains, with its replacement."""
    name = identifier.name
    bare = name.strip("_")
    if bare in ALLOWED:
        return None
    words = words_of(name)
    british = next((word for word in words if BRITISH.search(word)), None)
    if british is not None:
        return f"{british!r} is British"
    if words[:1] == ["test"]:  # the name of a test is a sentence, in which these are common words
        return None
    if identifier.is_verb and words == ["score"]:
        return "'score' as a verb: evaluate"
    text = f" {' '.join(words)} "
    for term, replacement in TERMS.items():
        if f" {term} " in text or (term != "one" and f" {term}s " in text):
            return f"{term!r}: {replacement}"
    return None


def test_names_are_split_into_words() -> None:
    assert words_of("num_TruthBoxes") == ["num", "truth", "boxes"]
    assert words_of("RGB8Format") == ["rgb8", "format"]
    assert words_of("_OLD_COCOFile") == ["old", "coco", "file"]


def test_refused_terms_are_recognized() -> None:
    for name in ("FoundBoxes", "num_right", "_own", "pictures", "max_refused_steps", "analyse"):
        assert replaced_term(Identifier(name, 1)) is not None, name
    for name in ("right", "one_hot", "ones", "unknown", "false_boxes", "resize", "score_threshold"):
        assert replaced_term(Identifier(name, 1)) is None, name
    assert replaced_term(Identifier("score", 1, is_verb=True)) is not None


def test_identifiers_use_the_terms_of_the_glossary() -> None:
    offenders = {
        f"{path.relative_to(ROOT)}:{identifier.line}: {identifier.name}: {term}"
        for path in FILES
        for identifier in identifiers(path)
        if (term := replaced_term(identifier)) is not None
    }
    listed = "\n".join(sorted(offenders))
    assert not offenders, f"{len(offenders)} identifiers use a word that the glossary replaces:\n{listed}"
