"""DEIMv2 detectors for surface defects.

import deim
detector = deim.load_detector("outputs/quickstart/best.pth")
detections = detector.predict(["part_1.jpg", "part_2.jpg"], score_threshold=0.4)
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deim.inference.predictor import load_detector

__all__ = ["__version__", "load_detector"]

try:
    __version__ = version("deim-defects")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import `load_detector` when it is first used, so that `import deim` alone does not load torch."""
    if name == "load_detector":
        from deim.inference.predictor import load_detector

        return load_detector
    raise AttributeError(f"module 'deim' has no attribute {name!r}")
