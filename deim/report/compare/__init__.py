"""Comparison of runs on the same images."""
