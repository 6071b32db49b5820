"""Image files: what they hold, scaled and kept."""
