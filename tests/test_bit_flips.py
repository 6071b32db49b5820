"""No flipped bit passes in silence, in any file that the project writes and reads again."""

import zipfile
from pathlib import Path

import pytest
import torch

from deim.config.loader import load_config
from deim.errors import CheckpointError, DataError
from deim.files import CHANGED, UNSEALED, is_unchanged, seal
from deim.metrics.convergence import read_convergence
from deim.model.weights_file import read_weights_file
from deim.report.schema import read_report
from tests.bit_flips import KINDS, flip_bits
from tests.test_fuzz import make_log, make_report_files


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_or_changes_no_value(kind: str, tmp_path: Path) -> None:
    outcomes = flip_bits(kind, tmp_path / "files", flips=25, seed=1)
    assert outcomes["silent"] == 0
    assert outcomes["noticed"] > 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_none_of_a_thousand_flipped_bits_is_silent(kind: str, tmp_path: Path) -> None:
    assert flip_bits(kind, tmp_path / "files", flips=1000, seed=2)["silent"] == 0


def test_each_byte_of_the_directory_of_a_weights_file_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(5.0), "b": [torch.ones(3, dtype=torch.int64), "text"]}, path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    for bit in range(8 * directory, 8 * len(good), 3):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            read = read_weights_file(path)
        except CheckpointError:
            continue
        assert torch.equal(read["a"], torch.arange(5.0)), bit
        assert torch.equal(read["b"][0], torch.ones(3, dtype=torch.int64)), bit
        assert read["b"][1] == "text"


@pytest.mark.parametrize(
    "text", ['{"seal": "%s", "a": [1, 2]}', '{"a":"{\\"seal\\": \\"%s\\"}"}', "# seal: %s\nepochs: 3\n"]
)
def test_a_seal_notices_each_change(text: str) -> None:
    sealed = seal((text % UNSEALED).encode())
    assert is_unchanged(sealed, needs_seal=True)
    assert len(sealed) == len((text % UNSEALED).encode())
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        assert not is_unchanged(changed, needs_seal=True), place


@pytest.mark.parametrize(
    ("old", "new"), [('"num_images": 4', '"num_images": 5'), ('"created": "2', '"created": "1')]
)
def test_a_report_with_another_value_of_the_right_kind_is_refused(old: str, new: str, tmp_path: Path) -> None:
    path = make_report_files(tmp_path / "files")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=f"report.json: {CHANGED}. Evaluate the checkpoint again"):
        read_report(path)


def test_lines_of_a_log_from_before_the_seal_are_read(tmp_path: Path) -> None:
    path = make_log(tmp_path / "run")
    lines = [line.split(", ", 1)[1] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{{{line}\n" for line in lines))
    convergence = read_convergence(path, planned_epochs=8)
    assert convergence is not None
    assert convergence.epochs == tuple(range(8))


def test_an_edited_config_of_a_run_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = KINDS["config.yml"].make(tmp_path / "run")
    assert load_config(path).epochs == 3
    assert not caplog.records
    path.write_text(path.read_text().replace("epochs: 3\n", "epochs: 4\n", 1))
    assert load_config(path).epochs == 4
    assert f"{path}: {CHANGED}; it is used as it is." in caplog.text
    caplog.clear()
    path.write_text(path.read_text().split("\n", 1)[1])
    assert load_config(path).epochs == 4
    assert not caplog.records


def test_a_damaged_line_of_a_log_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_log(tmp_path / "run")
    path.write_text(path.read_text().replace('"ap": 0.2', '"ap": 0.9'))
    convergence = read_convergence(path, planned_epochs=8)
    assert convergence is not None
    assert convergence.epochs == (0, 1, 3, 4, 5, 6, 7)
    assert f"{path}: 1 line damaged or cut off, left out" in caplog.text
