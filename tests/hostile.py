"""Damaged and hostile files made from good ones, seeded: bytes, values of JSON and YAML, and tags of XML."""

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

BIG_NUMBER, HUGE_NUMBER, LONE_SURROGATE = "@big-number@", "@huge-number@", "@lone-surrogate@"
DEEP_LIST, NESTED_LIST = "@deep-list@", "@nested-list@"
MARKS = {
    f'"{BIG_NUMBER}"': "9" * 5000,
    f'"{DEEP_LIST}"': "[" * 20_000 + "]" * 20_000,
    f'"{NESTED_LIST}"': "[" * 300 + "]" * 300,
    f'"{HUGE_NUMBER}"': "1e999",
    f'"{LONE_SURROGATE}"': '"\\ud800"',
}
"""Text that `json.dumps` cannot write."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, -(2**63) - 1, 1e308, float("inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "1",
        "1.0",
        "1e999",
        "\0",
        "../../../etc/hostname",
        "/dev/zero",
        "a" * 5000,
        "\u202e",
        "=1+1",
    ),
    *([], {}, [[]], [None], {"x": None}, [1, 2, 3, 4], ["1"], BIG_NUMBER, DEEP_LIST, LONE_SURROGATE),
)
YAML_VALUES = (
    *("!!float x", "!!int ''", "!!bool maybe", "!!timestamp x", "2024-13-45", "!!python/object:os.system ls"),
    *(
        "&a [*a]",
        "&a {x: *a}",
        "*missing",
        "[" * 3000 + "]" * 3000,
        "{a: {a: " * 500 + "}" * 1000,
        "9" * 5000,
    ),
    *(
        ".inf",
        ".nan",
        "'\\ud800'",
        '"\\ud800"',
        "!!binary %%%",
        "!!set {a, b}",
        "!!omap [a]",
        "? [a]\n: b",
        "|\n x",
    ),
    "[" + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]" for n in range(30)) + "]",
)
XML_VALUES = (
    '<?xml version="1.0" encoding="no-such"?>',
    '<?xml version="1.0" encoding="utf-7"?>',
    '<?xml version="1.0" encoding="base64"?>',
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><a>&c;</a>',
    '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation>&a;</annotation>',
    "<a>" * 5000,
    "<annotation/>",
)


def spoil_json(content: Any, rng: random.Random) -> str:
    """Return JSON text with one to three values replaced, removed or added anywhere."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        parent, key = rng.choice(list(_places(content)) or [({"": content}, "")])
        match rng.randint(0, 3):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("", "x", "__class__", "a" * 300))] = copy.deepcopy(rng.choice(VALUES))
            case _:
                parent[key] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(content)
    for mark, replacement in MARKS.items():
        text = text.replace(mark, replacement)
    return text


def spoil_log(content: bytes, rng: random.Random) -> bytes:
    """Return lines of JSON of which one is spoiled."""
    lines = content.decode().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = spoil_json(json.loads(lines[place]), rng)
    return "\n".join(lines).encode()


def spoil_torch(content: bytes, rng: random.Random) -> bytes:
    """Return a file of torch with wrong values or tensors anywhere, or with other bytes in its pickle."""
    buffer = io.BytesIO()
    if rng.random() < 0.4:
        packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", packing) as new:
            for name in old.namelist():
                entry = old.read(name)
                new.writestr(name, spoil_bytes(entry, rng) if name.endswith("data.pkl") else entry)
        return buffer.getvalue()
    values = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(rng.randint(1, 3)):
        parent, key = rng.choice(list(_places(values)))
        tensors = (
            torch.ones(1).expand(10**9),
            torch.ones(1).as_strided((10**6, 10**6), (0, 0)),
            torch.eye(3).to_sparse(),
            torch.empty(10**12, device="meta"),
            torch.full((3, 3), float("nan")),
            torch.zeros(2, dtype=torch.complex64),
            torch.zeros((), dtype=torch.bool),
            torch.zeros(0),
        )
        old = parent[key]
        tensors += (
            (old.long(), old.double(), old.flatten(), old[None]) if isinstance(old, torch.Tensor) else ()
        )
        parent[key] = rng.choice((*tensors, *VALUES, old))
    torch.save(values, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def spoil_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header, or the description within, is spoiled."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.6:
        described = header["__metadata__"]
        key = rng.choice(list(described))
        described[key] = spoil_json(json.loads(described[key]), rng)
        text = json.dumps(header)
    else:
        text = spoil_json(header, rng)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + content[8 + length :]


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes with some changed, removed, repeated or cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed) + 1)
        match rng.randint(0, 4):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + rng.randint(1, 40)] = b""
            case 2:
                changed[place:place] = rng.randbytes(rng.randint(1, 40))
            case 3:
                changed[place:place] = changed[place : place + 100]
            case _:
                if place < len(changed):
                    changed[place] = rng.randrange(256)
    return bytes(changed)


def spoil_text(content: str, values: tuple[str, ...], rng: random.Random) -> str:
    """Return text with a hostile value after a colon, in place of a line, or at the start."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    value = rng.choice(values)
    match rng.randint(0, 2):
        case 0:
            lines[place] = f"{lines[place].partition(':')[0]}: {value}"
        case 1:
            lines[place] = value
        case _:
            lines.insert(0, value)
    return "\n".join(lines) + "\n"


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with each of its keys or positions."""
    if isinstance(node, (dict, list)):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def spoil(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Return a damaged version of a good file.

    Args:
        content: Bytes of the file.
        kind: `json`, `yaml`, `xml`, `text`, `log`, `torch`, `safetensors` or `binary`; bytes of any kind are
            changed too.
        rng: Source of the choices.
    """
    makers: dict[str, Callable[[], bytes]] = {
        "json": lambda: spoil_json(json.loads(content), rng).encode(),
        "yaml": lambda: spoil_text(content.decode(), YAML_VALUES, rng).encode("utf-8", "surrogatepass"),
        "xml": lambda: spoil_text(content.decode(), XML_VALUES, rng).encode(),
        "text": lambda: spoil_text(content.decode(), (*map(str, VALUES),), rng).encode(),
        "log": lambda: spoil_log(content, rng),
        "torch": lambda: spoil_torch(content, rng),
        "safetensors": lambda: spoil_safetensors(content, rng),
    }
    if kind in makers and rng.random() < 0.75:
        return makers[kind]()
    return spoil_bytes(content, rng)
