"""Records come back from JSON as they were, and wrong JSON is named by its path."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from deim.records import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str
    score: float | None
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Root:
    leaves: tuple[Leaf, ...]
    size_hw: tuple[int, int]
    by_label: dict[int, float]
    note: str | None
    extra: dict[str, Any] = field(default_factory=dict)


ROOT = Root(
    leaves=(Leaf(name="pit", score=0.5), Leaf(name="crack", score=None, kind="b")),
    size_hw=(2, 3),
    by_label={0: 1.0, 7: 0.25},
    note=None,
)


def test_a_record_comes_back_as_it_was():
    assert from_json(Root, json.loads(json.dumps(to_json(ROOT)))) == ROOT


def test_unknown_keys_are_kept_where_there_is_a_place_and_stand_beside_the_others():
    node = to_json(ROOT) | {"from_the_future": [1]}
    root = from_json(Root, node)
    assert root.extra == {"from_the_future": [1]}
    assert to_json(root) == node


def test_missing_optional_values_are_none_and_missing_required_ones_are_named():
    node = to_json(ROOT)
    del node["note"], node["leaves"][0]["score"]
    assert from_json(Root, node) == ROOT.__class__(
        leaves=(Leaf(name="pit", score=None), ROOT.leaves[1]),
        size_hw=(2, 3),
        by_label=ROOT.by_label,
        note=None,
    )
    del node["leaves"][1]["name"]
    with pytest.raises(ValueError, match=r"^report\.json: leaves\[1\]\.name: missing\.$"):
        from_json(Root, node, where="report.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_hw": [1]}, r"size_hw: got \[1\], needs 2 values\."),
        ({"note": 3}, r"note: got 3, needs str\."),
        ({"size_hw": list(range(10_000))}, r"size_hw: got \[0, 1, .*\.\.\.\], needs 2 values\."),
        ({"size_hw": [True, 2]}, r"size_hw\[0\]: got True, needs an integer"),
        (
            {"size_hw": [2, 2**70]},
            r"size_hw\[1\]: got 1180591620717411303424, needs an integer of at",
        ),
        ({"leaves": [{"name": "x", "score": float("inf")}]}, r"leaves\[0\]\.score: got inf, needs a finite"),
        ({"leaves": [{"name": "x", "score": 10**400}]}, r"leaves\[0\]\.score: got 1000.*, needs a finite"),
        ({"leaves": [{"name": ["x"], "score": 1}]}, r"leaves\[0\]\.name: got \['x'\], needs str\."),
        ({"leaves": {"0": "x"}}, r"leaves: got \{'0': 'x'\}, needs a list\."),
        ({"leaves": [None]}, r"leaves\[0\]: got None, needs an object\."),
        ({"by_label": {"first": 1.0}}, r"by_label: got 'first', needs integers as keys\."),
        ({"by_label": [1.0]}, r"by_label: got \[1\.0\], needs an object\."),
        ({"leaves": [{"name": "x", "score": 1.0, "kind": "c"}]}, r"leaves\[0\]\.kind: got 'c', needs one of"),
    ],
)
def test_wrong_values_are_named_by_their_path(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        from_json(Root, to_json(ROOT) | change)


def test_numpy_values_become_plain_and_nan_becomes_null():
    assert to_json({"a": np.float64(np.nan), "b": np.arange(2), "c": (np.int64(3), True)}) == {
        "a": None,
        "b": [0, 1],
        "c": [3, True],
    }
