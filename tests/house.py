"""The size of the repository in figures: `make figures` prints them.

Statements, classes and names are counted with `ast`, so comments and strings are not taken for
code. Only files that git tracks are counted.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
# Words of names by which the core would name an extension: `screen`, `serve`, `harness`, `files`,
# `forecast` and `ray`.
WORDS = {
    *("screen", "screened", "screening", "library", "shortlist"),
    *("serve", "served", "serving", "servers", "server", "vllm", "sglang"),
    "harness",
    *("convert", "converting", "converted", "verify", "verification"),
    *("forecast", "calibration", "prior"),
    "ray",
}
# `find`, `data_sets` and `layouts` are everyday words: every text has a method `find`. The core
# would name one where it is a whole text, as that of a command in `next`; imports are counted
# apart.
TEXTS = {"find", "data_sets", "layouts"}

# Merges two adapters, and prints which modules of the package that loaded.
MERGE = """
import sys
sys.argv = ["loraprobe", "merge", "a", "b", "-o", "merged", "--quiet"]
from loraprobe.cli import main
try:
    main()
except SystemExit as end:
    print(end.code or 0, *(m for m in sys.modules if m.partition(".")[0] == "loraprobe"))
"""


def tracked() -> list[Path]:
    """Every existing file that git tracks, relative to the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def statements(tree: ast.AST) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree))


def dataclasses(tree: ast.AST) -> int:
    """Classes whose decorators name `dataclass`."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    decorators = [[ast.unparse(one) for one in node.decorator_list] for node in classes]
    return sum(any("dataclass" in one for one in own) for own in decorators)


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under its `if` and `try` too."""
    for node in body:
        yield node
        for field in ("body", "orelse", "handlers"):
            if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
                yield from top_level(getattr(node, field, []))


def capitalised(tree: ast.Module) -> set[str]:
    """The capitalised names that a module defines: classes anywhere, type aliases at its top."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in top_level(tree.body):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {one.asname for one in node.names if one.asname and one.asname != one.name}
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if name[0].isupper() and name != name.upper()}


def options_of_evaluation() -> dict[str, int]:
    """How many options merge-and-eval has, --config and --debug too, and how many of the core."""
    from loraprobe.options import commands, options_of

    name = "merge-and-eval"
    core = [*commands()[name].first.split(), *commands()[name].options.split()]
    return {
        f"options of {name}": len(options_of(name)) + 2,
        f"options of {name} that belong to the core": len(core) + 2,
    }


def journeys() -> dict[str, int]:
    """What docs/architecture.md follows through the code -> how many files its row names, with
    those of the row above where it names that."""
    page = text(Path("docs/architecture.md")).partition("| to follow |")[2]
    found, above = dict[str, int](), set[str]()
    for line in page.splitlines()[2:]:
        if line.startswith("| "):
            name, row = (cell.strip() for cell in line.split("|")[1:3])
            files = {file.rpartition("/")[2] for file in re.findall(r"[\w/]+\.py", row)}
            above = files | above if "the row above" in row else files
            found[name] = len(above)
    return found


def loaded_by_merge() -> list[str]:
    """The modules of the package that `loraprobe merge` of two adapters imports."""
    from making import saved_pair

    with TemporaryDirectory() as directory:
        saved_pair(Path(directory))
        run = subprocess.run(
            [sys.executable, "-c", MERGE], cwd=directory, capture_output=True, text=True
        )
    code, *modules = run.stdout.splitlines()[-1].split() if run.stdout else ["none"]
    if code != "0":
        raise SystemExit(f"merge ended with {code}: {run.stderr}")
    return modules


def identifiers(tree: ast.AST) -> set[str]:
    """The words of all names in a module, options of a command line among them."""
    names = set()
    for node in ast.walk(tree):
        names |= {getattr(node, key, None) for key in ("id", "attr", "arg", "name", "module")}
        if isinstance(node, ast.Constant) and str(node.value).startswith("--"):
            names.add(node.value)
    return {word for name in names if name for word in re.split(r"[\W_]+", str(name).lower())}


def texts(tree: ast.AST) -> set[str]:
    """The texts in a module."""
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {value for value in values if isinstance(value, str)}


def modules_of(tree: ast.AST) -> set[str]:
    """The modules that a module imports."""
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import))
    return found | {one.name for node in imports for one in node.names}


def of_extensions(package: dict[Path, ast.Module]) -> dict[str, int]:
    """The size of the core and of each extension, and how many files of the core know one."""
    home, apart = ("loraprobe", "extensions"), {"wiring.py"}
    core = {p: t for p, t in package.items() if p.parts[:2] != home and p.name not in apart}
    told = {"statements in the core": sum(map(statements, core.values()))}
    for name in sorted({p.parts[2] for p in package if p.parts[:2] == home and len(p.parts) > 3}):
        own = [tree for path, tree in package.items() if path.parts[:3] == (*home, name)]
        told[f"statements in the extension {name}"] = sum(map(statements, own))
    importing = [p for p, t in core.items() if any("extensions" in m for m in modules_of(t))]
    naming = [p for p, t in core.items() if identifiers(t) & WORDS or texts(t) & TEXTS]
    told["files of the core"] = len(core)
    told["files of the core that import an extension"] = len(importing)
    told["files of the core that name one"] = len(naming)
    return told


def figures() -> dict[str, int]:
    """Name -> figure, in the order in which they are printed."""
    python = [path for path in tracked() if path.suffix == ".py"]
    trees = {path: ast.parse(text(path)) for path in python}
    package = {path: tree for path, tree in trees.items() if path.parts[0] == "loraprobe"}
    lab = [tree for path, tree in trees.items() if path.parts[0] == "loraprobe_lab"]
    defined = Counter(name for tree in package.values() for name in capitalised(tree))
    doubled = sorted(name for name, count in defined.items() if count > 1)
    tests = [path for path in python if path.parts[0] == "tests"]
    return {
        "statements in loraprobe": sum(map(statements, package.values())),
        **of_extensions(package),
        "modules in loraprobe": len(package),
        "dataclasses in loraprobe": sum(map(dataclasses, package.values())),
        **options_of_evaluation(),
        **{f"files to read for: {name}": count for name, count in journeys().items()},
        "own modules that merge loads": len(loaded_by_merge()),
        f"capitalised names defined twice: {', '.join(doubled) or 'none'}": len(doubled),
        "statements in loraprobe_lab": sum(map(statements, lab)),
        "lines of tests": sum(len(text(path).splitlines()) for path in tests),
        "lines of README.md": len(text(Path("README.md")).splitlines()),
    }


if __name__ == "__main__":
    for name, figure in figures().items():
        print(f"{figure:>8}  {name}")
