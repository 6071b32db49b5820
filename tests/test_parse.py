"""Hostile text files end in one message with file and line, soon and in little memory."""

import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from deim.config.loader import load_config
from deim.errors import ConfigError, DataError
from deim.parse import MAX_DEPTH, parse_json, parse_yaml, read_json

LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'ha'}]\n" for n in range(12))
CHAIN = "".join(f"c{n}: &c{n} [{f'*c{n - 1}' if n else 'end'}]\n" for n in range(90))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nlr: !!float fast\n", "c.yml:2: not valid YAML: got 'fast', not a valid float."),
        ("seed: 1\nlr: !!int ''\n", "c.yml:2: not valid YAML: got '', not a valid int."),
        ("on: !!bool perhaps\n", "c.yml:1: not valid YAML: got 'perhaps', not a valid bool."),
        ("a: 1\nday: !!timestamp 2023-02-30\n", "c.yml:2: not valid YAML: got '2023-02-30', not a valid"),
        ("seed: 0x" + "e" * 4100, "c.yml: not valid YAML: got an integer of 4102 digits."),
        ("a: 1\nseed: " + "7" * 4400 + "\n", "c.yml:2: not valid YAML: got an integer of 4400 digits."),
        ('name: "\\ud9ab"\n', "c.yml:1: not valid YAML: got '\\ud9ab', which no text file can hold."),
        ('root: "da\\0ta"\n', "c.yml:1: not valid YAML: got 'da\\x00ta', which no text file can hold."),
        ("a: 1\nb: &b {c: [*b]}\n", "c.yml:2: not valid YAML: an alias contains itself."),
        (LAUGHS, "c.yml:7: not valid YAML: its aliases stand for more than 200000 values."),
        (CHAIN, f"c.yml:{MAX_DEPTH}: not valid YAML: nested more than {MAX_DEPTH} levels deep."),
        ("a: 1\nb: " + "{k: " * 99 + "}" * 99 + "\n", "c.yml:2: not valid YAML: nested more than"),
    ],
)
def test_yaml_that_cannot_be_read_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yml", error=ConfigError)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=!!int many", "--set seed=!!int many: not valid YAML: got 'many', not a valid int."),
        ("model.backbone=" + "[" * 900, "not valid YAML: nested more than"),
        ("data=&d {root: *d}", "--set data=&d {root: *d}: not valid YAML: an alias contains itself."),
    ],
)
def test_an_override_that_cannot_be_read_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("configs/quickstart.yml", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("base", ["a\\0b", "x" * 400, "/dev/zero"])
def test_a_base_that_is_no_file_is_an_error(base: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(f'_base_: "{base}"\n')
    with pytest.raises(ConfigError, match=r"(?i)not valid YAML|cannot be read|not a regular file|is no file"):
        load_config(path)


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, '{"a":' * 80 + "1" + "}" * 80])
def test_json_that_is_nested_too_deeply_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^a\.json: not a JSON file that can be read \(nested more than"):
        parse_json(text, "a.json")


def test_json_with_many_objects_side_by_side_is_read() -> None:
    assert len(parse_json(f"[{', '.join(['[{}]'] * 1000)}]", "a.json")) == 1000


YAML_2_KB = {
    "keys": "\n".join(f"k{number}:" for number in range(370)),
    "open lists": "[[]," * 500,
    "questions": "? " * 1000,
    "dashes": "- " * 1000,
    "quotes": '"' + "\\x41" * 500,
    "laughs": LAUGHS,
    "merged": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 50)),
    "sexagesimal": "epochs: " + "59:" * 600 + "1",
    "anchors": "\n".join(f"- &a{number} *a{number - 1}" for number in range(150)),
}


@pytest.mark.parametrize("text", YAML_2_KB.values(), ids=YAML_2_KB)
def test_2_kb_of_yaml_take_little_time_and_memory(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(text[:2048])
    assert_cheap(lambda: load_config(path))


@pytest.mark.parametrize(
    "text", ["[" * 2048, "9" * 2048, "[" + "9e999," * 340 + "1]", '{"a":' * 400, '"' + "\\ud800" * 340 + '"']
)
def test_2_kb_of_json_take_little_time_and_memory(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text[:2048])
    assert_cheap(lambda: read_json(path))


def assert_cheap(read: Callable[[], object]) -> None:
    start = time.process_time()
    with suppress(ConfigError, DataError):
        read()
    assert time.process_time() - start < 2
    tracemalloc.start()
    with suppress(ConfigError, DataError):
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
