"""The commands, one file each; `deim COMMAND` and the files of the same name in `tools/` run them."""
