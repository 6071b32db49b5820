"""Access to `../shared/cases`: small inputs that imitate what named tools and users really produce."""

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no shared cases: {CASES} does not exist")
