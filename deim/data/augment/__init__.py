"""Changes of training images, one file each; `stages.py` beside this folder says when they run."""
