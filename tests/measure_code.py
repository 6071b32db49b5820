"""Measure the code of a checkout: `python tests/measure_code.py [CHECKOUT]`; JSON on the last line."""

import ast
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path


def measure(root: Path) -> dict[str, object]:
    """Count lines by room, lengths of functions, untyped dictionaries and words of the second phase.

    Args:
        root: A checkout of this project.
    """
    files = sorted(path for room in ("deim", "multimodal", "tools") for path in (root / room).rglob("*.py"))
    lines: Counter[str] = Counter()
    lengths, untyped, words = [], 0, 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(root).parts
        room = "/".join(parts[:2]) if parts[0] == "deim" and len(parts) > 2 else parts[0]
        lines[room] += text.count("\n")
        untyped += len(re.findall(r"(?:dict|Mapping)\[str, Any\]", text))
        words += text.count("multimodal") if parts[0] == "deim" else 0
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
    lengths.sort()
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "lines_by_room": dict(sorted(lines.items())),
        "largest_file": max(path.read_text(encoding="utf-8").count("\n") for path in files),
        "functions": len(lengths),
        "function_median": statistics.median(lengths),
        "function_p95": lengths[int(0.95 * len(lengths))],
        "function_max": lengths[-1],
        "untyped_dictionaries": untyped,
        "multimodal_in_deim": words,
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    sys.stdout.write(json.dumps(measure(checkout), indent=1) + "\n")
