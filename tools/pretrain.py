"""Pretrain a backbone on images without annotations; the same as `deim pretrain`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["pretrain"]))
