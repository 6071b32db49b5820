"""Whether the text of phase 2 helps, or only the training that comes with it."""
