"""Random changes of training images, one file each; `pipeline.py` lists them with their epochs."""
