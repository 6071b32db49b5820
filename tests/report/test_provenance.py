"""What a report was made from."""

from hashlib import sha256
from pathlib import Path

from deim.files import sha256_of_file
from deim.report.provenance import installed_versions, provenance_from_report
from tests.report.random_reports import make_provenance, make_report


def test_sha256_of_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of_file(path) == sha256(path.read_bytes()).hexdigest()


def test_installed_versions_are_texts() -> None:
    versions = installed_versions()
    assert versions["torch"]
    assert versions["faster_coco_eval"]
    assert versions["python"].startswith("3.")


def test_a_report_gives_back_what_it_was_made_from(tmp_path: Path) -> None:
    assert provenance_from_report(make_report(tmp_path)) == make_provenance(tmp_path)
