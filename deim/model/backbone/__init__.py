"""The backbone: a vision transformer with a spatial adapter."""
