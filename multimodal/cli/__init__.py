"""The commands of text fusion, one file each."""
