"""Text fusion on a frozen detector; `deim.load_detector` opens its checkpoints like any other."""
