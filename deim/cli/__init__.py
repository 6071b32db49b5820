"""The commands, one file each; `deim COMMAND` and the files in `tools/` run them."""
