"""Pretraining of a backbone on images without annotations."""
