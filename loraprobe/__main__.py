"""`python -m loraprobe`."""

from loraprobe.cli import main

main()
