"""The table of docs/pathologies.md: each specimen, and the results of inspect and merge.

    python tests/pathologies/table.py        writes what happens now into every row

A new specimen needs a row with any outcome. tests/core/compatibility/test_compatibility.py compares
the page with what happens.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from making import call

from pathologies.specimens import SPECIMENS, partner

PAGE = Path(__file__).parents[2] / "docs" / "pathologies.md"
SLOW = {"hundred-thousand-modules"}


def rows() -> dict[str, list[str]]:
    """Case -> the cells of its row on the page: what it is, who reported it, and the outcomes."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line[2:-2].split(" | ") for line in lines if line.startswith("| `")]
    return {case.strip("`"): rest for case, *rest in cells}


def behaviour(case: str, place: Path) -> list[str]:
    """Findings and exit code of inspect, and result and exit code of merge, for a specimen."""
    SPECIMENS[case](place / "a")
    partner(place / "b", case)
    seen = _call("inspect", place / "a")
    if seen.exit_code == 2:
        inspected = f"refused: {_sentence(seen, place)}"
    else:
        inspected = _codes(json.loads(seen.stdout), ("error", "warning", "note")) or "no finding"
    out = place / "out"
    done = _call("merge", place / "a", place / "b", "-o", out)
    assert out.exists() == (done.exit_code == 0)
    if done.exit_code == 0:
        said = _codes(json.loads(done.stdout), ("error", "warning", "note"))
        merged = f"merged: {said}" if said else "merged"
    else:
        codes = re.findall(r"\[([a-z-]+)\]", done.stderr)
        merged = f"refused: {', '.join(f'`{c}`' for c in codes) or _sentence(done, place)}"
        merged = "refused alike" if merged == inspected else merged
    return [inspected, str(seen.exit_code), merged, str(done.exit_code)]


def _call(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit), arguments
    return result


def _codes(document: dict[str, Any], severities: tuple[str, ...]) -> str:
    issues = document["compatibility"]["issues"]
    codes = sorted({issue["code"] for issue in issues if issue["severity"] in severities})
    codes = [code for code in codes if code != "licence-unknown"]  # no specimen has a card
    return ", ".join(f"`{code}`" for code in codes)


def _sentence(result: Any, place: Path) -> str:
    text = " ".join(result.stderr.split()).partition("error: ")[2]
    return text.replace(f"{place}/", "").replace("|", "\\|")


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for case, (what, reported, *old) in rows().items():
        with tempfile.TemporaryDirectory() as place:
            found = behaviour(case, Path(place))
        first = f"| `{case}` | {what} | {reported} | "
        text = text.replace(first + " | ".join(old), first + " | ".join(found))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
