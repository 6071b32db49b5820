"""The decoder, its queries and its heads."""
