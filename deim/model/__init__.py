"""The detector: backbone, encoder, decoder."""
