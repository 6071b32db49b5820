"""Weights files that claim what they do not have are refused, before the claim takes memory."""

import io
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.errors import CheckpointError
from deim.model.weights_file import read_weights_file


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.ones(3).as_strided((10**5, 10**5), (0, 0)),
            "claims a tensor of shape (100000, 1",
        ),
        (
            lambda: torch.ones(1, dtype=torch.float64).expand(10**10),
            "claims a tensor of shape (10000000",
        ),
        (lambda: torch.eye(3).to_sparse(), "which is no plain tensor"),
        (lambda: torch.eye(4).to_sparse_csr(), "which is no plain tensor"),
        (lambda: torch.empty(10**11, device="meta"), "which is no plain tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "which is no plain tensor"),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_tensors_that_are_not_plain_are_refused(
    make: Callable[[], torch.Tensor], message: str, is_nested: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"a": [make()]}} if is_nested else {"a": make()}, path)
    assert message in refusal(path)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


@pytest.mark.parametrize("numel", [200, 50_000])
def test_a_pickle_that_claims_more_bytes_than_its_entry_has_is_refused(numel: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(numel), "b": torch.zeros(80_000)}, path)
    rewrite(path, lambda name, data: data[: len(data) // 2] if name.endswith("data/0") else data)
    assert f"claims {4 * numel} bytes for a tensor and has {2 * numel}" in refusal(path)


@pytest.mark.parametrize("size", [10**6, 10**7])
def test_packed_entries_are_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(size)}, path)
    rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < size
    assert "its entries claim more than the" in refusal(path)


@pytest.mark.parametrize("index", [2**31 - 1, 2**25])
def test_a_pickle_that_numbers_its_values_beyond_reason_takes_no_memory(index: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": 1}, path)
    put = pickle.LONG_BINPUT + index.to_bytes(4, "little")
    rewrite(path, lambda name, data: data[:3] + put + data[3:] if name.endswith("data.pkl") else data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"claims {index} values" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def make_circle() -> Any:
    circle: list[Any] = [1]
    circle.append({"again": circle})
    return circle


def make_laughs() -> Any:
    laughs: Any = [1, 2]
    for _ in range(40):
        laughs = [laughs, laughs]
    return laughs


@pytest.mark.parametrize("make", [make_circle, make_laughs])
@pytest.mark.parametrize("is_zip", [True, False])
def test_values_without_end_are_refused(make: Callable[[], Any], is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": make()}, path, _use_new_zipfile_serialization=is_zip)
    assert refusal(path).endswith("Use another copy.")


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_plain_files_of_either_form_are_read(dtype: torch.dtype, is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    shared = torch.arange(6).reshape(2, 3).to(dtype)
    content = {
        "a": shared,
        "b": shared[1:],
        "c": torch.nn.Parameter(torch.ones(2)),
        "d": [1, None, "x", (2,)],
    }
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    read = read_weights_file(path)
    assert torch.equal(read["a"].float(), shared.float())
    assert read["b"].shape == (1, 3)
    assert read["d"] == [1, None, "x", (2,)]


def test_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": Path("x")}, path)
    assert "holds pathlib" in refusal(path)
