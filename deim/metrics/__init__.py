"""Scores of detections, and what is wrong with them."""
