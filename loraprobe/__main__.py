"""`python -m loraprobe`, and where the command `loraprobe` starts."""

import sys
import time


def main() -> None:
    """The command line; what goes wrong while it is still being imported is one line, too."""
    started = time.perf_counter()
    try:
        from loraprobe.cli import main as run

        run(started)
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        sys.exit(130)
    except Exception as error:
        import json

        from loraprobe.errors import as_document, reported, trace
        from loraprobe.secrets import scrub

        if "--debug" in sys.argv:
            sys.stderr.write(trace(error, scrub))
        told = reported(error)
        sys.stderr.write(f"error: {scrub(str(told))}\n")
        if "--json" in sys.argv:
            print(scrub(json.dumps(as_document(told), indent=1)))
        sys.exit(2)


if __name__ == "__main__":
    main()
