"""Run the command `ztw` as `python -m ztw`."""

from ztw.cli.app import app

if __name__ == "__main__":
    app(prog_name="ztw")
