"""Runs a command until standard input ends: `python supervisor.py DIRECTORY COMMAND...`, on Unix.

The other end of standard input is held by the process that started it, and closes however that one
ends, also if it is killed. The command, and what it started in the same process group, gets SIGTERM
then, and SIGKILL after GRACE seconds; the directory is removed. loraprobe is not imported, so that
it takes little memory.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys

GRACE = 20.0


def main() -> None:
    directory, *command = sys.argv[1:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while process.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # also what the command left behind, and this process


if __name__ == "__main__":
    main()
