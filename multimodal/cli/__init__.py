"""The commands for text fusion, one file each."""
