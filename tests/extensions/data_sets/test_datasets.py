"""Data sets of the Hub as tasks, against a real server on loopback."""

import io
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hubs import commit, olah, use

from loraprobe.errors import BadReference, HubError, LoraprobeError
from loraprobe.extensions.data_sets import splits
from loraprobe.extensions.data_sets.splits import resolve_dataset
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: hard
  data_files: [{split: test, path: hard/*.csv}]
---
"""
READ = Options.of({"fields": "prompt=question,after=####"})


def parquet(*rows: dict) -> bytes:
    import pyarrow
    from pyarrow import parquet

    target = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), target)
    return target.getvalue()


def row(number: int) -> dict:
    return {"question": f"{number}?", "answer": f"so\n#### {number}"}


def files() -> dict[str, bytes]:
    return {
        "README.md": CARD.encode(),
        "main/train-00000-of-00001.parquet": parquet(row(0)),
        "main/test-00000-of-00002.parquet": parquet(row(1), row(2)),
        "main/test-00001-of-00002.parquet": parquet(row(3)),
        "hard/all.csv": b"question,answer\nhard?,x #### 9\n",
        "maths.py": b"raise SystemExit('code was run')",
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real Hub server with data sets: (its address, commits by name)."""
    pytest.importorskip("datasets")
    root, made = tmp_path_factory.mktemp("olah"), files()
    (root / "mirrors" / "models").mkdir(parents=True)
    acme = root / "mirrors" / "datasets" / "acme"
    old = {"README.md": b"# Old", "data/test.jsonl": json.dumps(row(7)).encode()}
    commits = {"old": commit(acme / "maths", old)}
    subprocess.run(["git", "-C", acme / "maths", "rm", "-q", "data/test.jsonl"], check=True)
    commits["new"] = commit(acme / "maths", made)
    commits["bare"] = commit(acme / "bare", {"data/test.jsonl": json.dumps(row(4)).encode()})
    commits["script"] = commit(acme / "script", {"script.py": made["maths.py"], "README.md": b"#"})
    with olah(root) as url:
        yield url, commits


@pytest.fixture
def acme(served, monkeypatch, tmp_path):
    """The server, with an empty cache; the commits by name."""
    use(monkeypatch, served[0], tmp_path / "cache")
    return served[1]


def answers(reference: str) -> list[str]:
    (task,) = open_tasks(f"hf://datasets/{reference}", READ)
    return [item.answers[0] for item in task.items]


def test_a_split_is_read_from_all_its_files_at_one_commit(acme):
    (task,) = open_tasks("hf://datasets/acme/maths:main/test", READ)
    assert [item.answers[0] for item in task.items] == ["1", "2", "3"]
    assert [item.id for item in task.items] == ["1", "2", "3"]
    assert (task.name, task.commit) == ("maths", acme["new"])
    assert task.reference == f"hf://datasets/acme/maths@{acme['new']}:main/test"
    assert open_tasks(task.reference, READ) == [task]
    assert task.summary().commit == acme["new"] and len(task.sha256) == 64


def test_configurations_splits_and_revisions(acme):
    assert answers("acme/maths:main") == ["1", "2", "3"]  # the split test
    assert answers("acme/maths:main/train") == ["0"]
    assert answers("acme/maths:hard") == ["9"]
    assert answers(f"acme/maths@{acme['old']}") == ["7"]
    assert answers("acme/bare") == ["4"]  # a repository without a card
    (task,) = open_tasks("hf://datasets/acme/maths:hard/test", READ)
    assert task.name == "maths-hard"


def test_only_the_files_of_the_split_are_downloaded(acme, tmp_path):
    answers("acme/maths:main/train")
    held = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert held == {"README.md", "train-00000-of-00001.parquet"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("acme/maths", "no configuration 'default'; name one of 'main' and 'hard'"),
        ("acme/maths:mein/test", "no configuration 'mein'"),
        ("acme/maths:main/tests", "did you mean 'test'?"),
        ("acme/absent", "no data set acme/absent"),
        ("acme/script", "without a script"),
    ],
)
def test_what_is_not_there_is_named(acme, reference, said):
    with pytest.raises(HubError) as error:
        answers(reference)
    assert said in str(error.value) and error.value.cure and "\n" not in str(error.value)


def test_another_layout_is_suggested(acme):
    with pytest.raises(LoraprobeError, match="add --fields prompt=question,after=####"):
        open_tasks("hf://datasets/acme/maths:main/test", Options())
    with pytest.raises(BadReference):
        answers("acme")


def test_offline_the_cached_commit_is_read(acme, monkeypatch, tmp_path):
    before = answers("acme/maths:main/test")
    pinned = f"acme/maths@{acme['new']}:main/test"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    use(monkeypatch, url, tmp_path / "cache", offline=True)
    assert answers("acme/maths:main/test") == answers(pinned) == before
    with pytest.raises(HubError, match="cache"):
        answers("acme/maths:main/train")


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.csv", "/etc/*", "../../*.csv"])
def test_a_card_that_names_files_elsewhere_is_refused(hub, path):
    pytest.importorskip("datasets")
    card = f"---\nconfigs:\n- {{config_name: a, data_files: '{path}'}}\n---\n"
    hub.files = {"README.md": card.encode(), "x.csv": b"a,b\n1,2\n"}
    with pytest.raises(HubError, match="outside it"):
        resolve_dataset("hf://datasets/acme/maths")
    assert hub.fetched() <= {"README.md"}


def test_without_the_extra_the_command_to_install_it_is_named(acme, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HubError, match=r"pip install 'loraprobe\[datasets\]'"):
        answers("acme/maths:main/test")


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_a_listing_is_not_written_through_a_link(tmp_path, monkeypatch, linked):
    monkeypatch.setenv("LORAPROBE_CACHE", str(tmp_path / "cache"))
    named = {"reference": SimpleNamespace(repo="acme/set"), "commit": "c", "files": ["a"]}
    online = SimpleNamespace(**named, unreachable=False)
    offline = SimpleNamespace(**named | {"files": []}, unreachable=True)
    assert splits._all_files(online) == splits._all_files(offline) == ["a"]
    folder = tmp_path / "cache" / "listings"
    (place,) = [folder] if linked == "folder" else folder.iterdir()
    place.rename(tmp_path / "behind")
    place.symlink_to(tmp_path / "behind")
    (file,) = [f for f in (tmp_path / "behind", *tmp_path.glob("behind/*")) if f.is_file()]
    file.write_text('["mine"]')
    assert splits._all_files(offline) == []
    assert splits._all_files(online) == ["a"] and file.read_text() == '["mine"]'
