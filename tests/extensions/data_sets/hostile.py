"""Cases of hostile tables; of data sets the page names tests of this folder."""

import subprocess
import sys
from pathlib import Path

from adversarial import case, timed
from adversarial.errors import told

PAGE = "tasks.md"


@case("parquet-rows")
def _(place: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array(["x"]).take(pyarrow.array([0] * 3_000_000))
    table = pyarrow.table({"prompt": column, "answer": column})
    pyarrow.parquet.write_table(table, place / "t.parquet", compression="zstd")
    assert (place / "t.parquet").stat().st_size < 500_000
    return timed(lambda: told("task", "check", place / "t.parquet", names="t.parquet"))


@case("parquet-text")
def _(place: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    text, rows = pyarrow.array(["a" * 50_000_000]), pyarrow.array([0] * 400, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(rows, text)
    table = pyarrow.table({"prompt": column, "answer": ["x"] * 400})
    file = place / "t.parquet"
    pyarrow.parquet.write_table(table, file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 3_000
    return f"{told('task', 'check', file, names='t.parquet')}, {_peak_of_reading(file)}"


def _peak_of_reading(file: Path) -> str:
    """How much memory it takes to read the rows of a file, in a process of its own."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from loraprobe.extensions.data_sets.tables import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file, before = Path(sys.argv[1]), peak()\n"
        "try: list(data_rows(file, file.read_bytes()))\n"
        "except TaskError: print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, check=True
    )
    return "in less than 1 GB" if int(done.stdout) < 1_000_000 else "in more than 1 GB"


@case("parquet-damaged")
def _(place: Path) -> str:
    """One bit after the other is flipped; what is still Parquet is read."""
    import pyarrow
    import pyarrow.parquet

    rows = {"prompt": [f"question {number}?" for number in range(200)], "answer": ["x"] * 200}
    pyarrow.parquet.write_table(pyarrow.table(rows), place / "t.parquet")
    whole, ends = (place / "t.parquet").read_bytes(), set()
    for number in range(25):
        damaged = bytearray(whole)
        damaged[4 + number * (len(whole) - 8) // 25] ^= 1 << number % 8
        (place / "t.parquet").write_bytes(damaged)
        ends.add(told("task", "check", place / "t.parquet", names="t.parquet"))
    assert "exit 0" in ends
    return ", ".join(sorted(ends - {"exit 0"}))


@case("nested-choices-of-a-table")
def _(place: Path) -> str:
    (place / "t.csv").write_text(f'prompt,answer,choices\np,a,"{"[" * 5_000}{"]" * 5_000}"\n')
    return told("task", "check", place / "t.csv", names="t.csv, line 2")


@case("lists-as-choices-of-parquet")
def _(place: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["p"], "answer": ["a"], "choices": [[["a"], ["b"]]]})
    pyarrow.parquet.write_table(table, place / "t.parquet")
    return told("task", "check", place / "t.parquet", names="t.parquet, row 1")
