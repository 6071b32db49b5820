"""Backbones: `interface.py` says what one must offer, `build.py` chooses one."""
