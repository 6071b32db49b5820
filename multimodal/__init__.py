"""Phase 2: text fusion on a frozen detector.

import multimodal
detector = multimodal.load_detector("outputs/quickstart_multimodal/best.pth")
detections = detector.predict(["part_1.jpg", "part_2.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal.task import load_detector

__all__ = ["load_detector"]


def __getattr__(name: str) -> Any:
    """Import `load_detector` when it is first used, so that `import multimodal` alone does not load torch."""
    if name == "load_detector":
        from multimodal.task import load_detector

        return load_detector
    raise AttributeError(f"module 'multimodal' has no attribute {name!r}")
