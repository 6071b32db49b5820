"""Text encoders: one file each with its options; `build.py` chooses one."""
