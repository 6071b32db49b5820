"""Backbones: `interface.py` says what one must offer, and chooses one."""
