"""The entry point of `python -m loraprobe` and of the command `loraprobe`."""

import gc
import sys
import time


def main() -> None:
    """Runs the command line. An error during its import is printed as one line, too.

    No garbage is collected until `imports_done`: there is none in what torch's import allocates,
    and a search through it takes a fifth of the time. A program that calls this function gets its
    collector back in any case.
    """
    started = time.perf_counter()
    collected = gc.isenabled()
    gc.disable()
    try:
        from loraprobe.cli import main as run

        run(started)
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        sys.exit(130)
    except Exception as error:
        import json

        from loraprobe.errors import as_document, reported
        from loraprobe.secrets import scrub

        known = reported(error)
        sys.stderr.write(f"error: {scrub(str(known))}\n")
        if "--json" in sys.argv:
            print(scrub(json.dumps(as_document(known), indent=1)))
        sys.exit(2)
    finally:
        if collected:
            gc.enable()


if __name__ == "__main__":
    main()
