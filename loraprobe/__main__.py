"""`python -m loraprobe`, and where the command `loraprobe` starts."""

import sys


def main() -> None:
    """The command line; an interruption while it is still being imported is one line, too."""
    try:
        from loraprobe.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
