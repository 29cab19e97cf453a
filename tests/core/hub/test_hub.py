"""References and the Hub: against a real server on loopback, and one that misbehaves on demand."""

import json
from pathlib import Path

import making
import pytest
import torch
from hubs import adapter_files, commit, git, olah, use

import loraprobe
from loraprobe import hub
from loraprobe.errors import (
    AdapterError,
    BadReference,
    BaseError,
    CompatibilityError,
    HubError,
    LoraprobeError,
    UsageError,
)
from loraprobe.hub import Reference
from loraprobe.records import FIXED

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TOKEN = "hf_verysecrettoken123"
TRAINED_ON_SFT = "do_train: true\nadapter_name_or_path: acme/sft\ncreate_new_adapter: true\n"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A real Hub server over git repositories: (its address, commits by name)."""
    root = tmp_path_factory.mktemp("olah")
    models = root / "mirrors" / "models" / "acme"
    old, new, other = (adapter_files(root / f"made{i}", seed=i) for i in range(3))
    commits = {"old": commit(models / "math", old | {"README.md": b"# Old"})}
    git(models / "math", "tag", "v1")
    junk = {"optimizer.pt": b"x" * 1000, "README.md": b"# Maths"}
    commits["new"] = commit(models / "math", new | junk)
    held = {"law": new, "med": other}
    several = {f"lora/{name}/{f}": c for name, files in held.items() for f, c in files.items()}
    commits["several"] = commit(models / "several", several | {"README.md": b"# All"})
    for name, base, card in (
        ("sft", "acme/base", ""),
        ("dpo", "acme/sft", ""),
        ("trained", "acme/base", ""),
        ("told", "acme/base", "This model is a fine-tuned version of [acme/sft](x)."),
        ("plain", "acme/base", "This model is a fine-tuned version of [acme/base](x)."),
        ("itself", "acme/base", "This model is a fine-tuned version of [acme/itself](x)."),
        ("copy", "acme/base", "This model is a fine-tuned version of [acme/itself](x)."),
        ("longer", "acme/base", "This model is a fine-tuned version of [acme/itself](x)."),
    ):
        alike = "itself" if name in ("copy", "longer") else name
        scaling = 1.0 if name == "longer" else 0.5
        files = adapter_files(root / name, seed=sum(alike.encode()), scaling=scaling)
        config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": base}
        files["adapter_config.json"] = json.dumps(config).encode()
        if name == "trained":
            files["training_args.yaml"] = TRAINED_ON_SFT.encode()
        commit(models / name, files | {"README.md": card.encode()})
    llama = making.tiny_llama()
    llama.save_pretrained(root / "base", max_shard_size="4KB")
    base = {f.name: f.read_bytes() for f in (root / "base").iterdir()}
    extra = {"pytorch_model.bin": b"never", "harm.py": b"x = 1", "tokenizer.json": b"{}"}
    commits["base"] = commit(models / "base", base | extra)
    with olah(root) as url:
        yield url, commits


@pytest.fixture
def acme(served, monkeypatch, tmp_path):
    """The real server, with an empty cache; the commits by name."""
    use(monkeypatch, served[0], tmp_path / "cache")
    return served[1]


def parents(adapters):
    return [[parent.adapter.name for parent in one.parents] for one in adapters]


def test_the_hub_tells_whether_an_adapter_was_trained_on_another(acme, monkeypatch):
    names = [f"acme/{name}" for name in ("dpo", "trained", "told", "plain")]
    found = hub.load_all(names)
    assert parents(found) == [["sft"], ["sft"], ["sft"], []]
    assert [one.base_model for one in found] == ["acme/base"] * 4
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # sft is in the cache now
    assert parents(hub.load_all(names[:3])) == [["sft"]] * 3


@pytest.mark.parametrize(
    ("name", "codes"), [("itself", []), ("copy", []), ("longer", ["continued-adapter"])]
)
def test_a_card_that_names_its_own_adapter_or_a_copy_or_a_part_of_it_names_no_parent(
    acme, name, codes
):
    for _ in "12":  # the second time all are in the cache
        (found,) = hub.load_all([f"acme/{name}"])
        assert (found.parents, [issue.code for issue in found.issues]) == ((), codes)


def test_what_a_training_file_names_is_fetched(acme, tmp_path):
    making.random_adapter("b", seed=5, base_model="acme/base").save(tmp_path / "b")
    (tmp_path / "b" / "training_args.yaml").write_text(TRAINED_ON_SFT)
    ref = str(tmp_path / "b")
    assert parents([hub.load(ref)]) == [["sft"]]


def test_the_card_of_a_local_adapter_fetches_nothing(acme, tmp_path):
    making.random_adapter("b", seed=5, base_model="acme/base").save(tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("A fine-tuned version of [acme/sft](x).")
    found = hub.load(str(tmp_path / "b"))
    assert (found.parents, found.issues) == ((), ())
    assert not list(tmp_path.glob("cache/models--acme--*"))
    hub.load("acme/sft")
    assert parents([hub.load(str(tmp_path / "b"))]) == [["sft"]]


@pytest.fixture
def bad(hub, monkeypatch):
    """A server to spoil, serving one good adapter; retries do not wait."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def sentence(call, kind=HubError) -> str:
    """The message of the error that a call must raise: one line, no secret, exit code 2."""
    with pytest.raises(LoraprobeError) as caught:
        call()
    assert type(caught.value) is kind, repr(caught.value)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and TOKEN not in text
    assert caught.value.exit_code == 2
    return text


def cached_files(cache: Path) -> set[str]:
    """Names of all files in snapshots of the cache, relative to their commit."""
    found = (p for p in cache.glob("models--*/snapshots/*/**/*") if p.is_file())
    return {"/".join(p.relative_to(cache).parts[3:]) for p in found}


INVALID = """
./nowhere /nowhere/x ~/nowhere/x nowhere a/b/c a/b@ x= a/b:../c a/b@v1:x/../../y a/b:/etc é/b
~nobody/x
""".split()
INVALID += ["", "a b/c", "a\0b", "x" * 5000]


class TestReference:
    @pytest.mark.parametrize(
        ("text", "name", "repo", "revision", "folder", "short"),
        [
            ("acme/math", None, "acme/math", None, "", "math"),
            ("m=acme/math", "m", "acme/math", None, "", "m"),
            ("acme/math@v1", None, "acme/math", "v1", "", "math"),
            ("acme/math@refs/pr/3", None, "acme/math", "refs/pr/3", "", "math"),
            ("acme/math@v1:lora/law", None, "acme/math", "v1", "lora/law", "law"),
            ("x=acme/math:law/", "x", "acme/math", None, "law", "x"),
        ],
    )
    def test_on_the_hub(self, text, name, repo, revision, folder, short):
        found = Reference.parse(text)
        assert (found.path, found.name, found.repo) == (None, name, repo)
        assert (found.revision, found.folder, found.short) == (revision, folder, short)
        assert found.text == text.removeprefix(f"{name}=")

    def test_a_directory_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "acme" / "math").mkdir(parents=True)
        (tmp_path / "a=b").mkdir()
        for text, name in (("acme/math", None), ("m=./acme/math", "m"), ("a=b", None), (".", None)):
            found = Reference.parse(text)
            assert (found.path is not None, found.name) == (True, name)
        assert Reference.parse("acme/math@main").path is None
        assert Reference.parse(".").short == tmp_path.name
        assert "acme/math@main" in sentence(lambda: hub.load("acme/math"), AdapterError)

    @pytest.mark.parametrize("text", INVALID)
    def test_invalid_references_are_named_in_the_error(self, text):
        said = sentence(lambda: Reference.parse(text), BadReference)
        assert repr(text.rpartition("=")[2])[1:40] in said or repr(text)[1:40] in said

    def test_only_a_base_may_lack_its_owner(self):
        assert Reference.parse("gpt2", bare=True).repo == "gpt2"
        sentence(lambda: Reference.parse("gpt2"), BadReference)

    @pytest.mark.parametrize("name", ["uniform", *FIXED])
    def test_names_of_systems_are_refused(self, name):
        assert repr(name) in sentence(lambda: Reference.parse(f"{name}=a/b"), UsageError)


class TestNames:
    def test_last_parts_made_unique_and_chosen_ones_kept(self, tmp_path):
        for place in ("x/math", "y/math", "z/base"):
            making.random_adapter().save(tmp_path / place)
        x, y, z = (str(tmp_path / p) for p in ("x/math", "y/math", "z/base"))
        assert [a.name for a in hub.load_all([x, x])] == ["math", "math-2"]
        assert [a.name for a in hub.load_all([x, f"math={y}"])] == ["math-2", "math"]
        assert [a.name for a in hub.load_all([z])] == ["base-2"]

    def test_folders_of_one_name_are_named_by_those_above_that_differ(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place in ("x/last", "y/last", "p/run/last", "q/run/last"):
            making.random_adapter().save(tmp_path / place)
        for refs, names in (
            (["x/last", str(tmp_path / "y/last"), "./x/last/"], ["x", "y", "x-2"]),
            (["p/run/last", "q/run/last"], ["p", "q"]),
            (["x/last", "mine=y/last"], ["last", "mine"]),
            ([hub.load("x/last"), hub.load("y/last")], ["x", "y"]),
        ):
            assert [a.name for a in hub.load_all(refs)] == names
        monkeypatch.setenv("HOME", str(tmp_path / "x"))  # a user's name is private
        refs = [str(tmp_path / place / "last") for place in "xy"]
        assert [a.name for a in hub.load_all(refs)] == ["last", "last-2"]

    def test_loaded_adapters_pass_through(self, tmp_path):
        making.random_adapter().save(tmp_path / "a")
        mine = making.random_adapter("a")
        first, second = hub.load_all([mine, str(tmp_path / "a")])
        assert first is mine and second.name == "a-2"
        refs = [f"m={tmp_path / 'a'}"] * 2
        assert "'m'" in sentence(lambda: hub.load_all(refs), UsageError)

    def test_a_named_adapter_lies_in_its_subfolder(self, tmp_path):
        making.random_adapter().save(tmp_path / "out" / "math")
        assert hub.load(str(tmp_path / "out")).source.path == tmp_path / "out" / "math"


class TestRealServer:
    def test_adapter_is_pinned_and_only_needed_files_are_fetched(self, acme, tmp_path):
        adapter = hub.load("acme/math")
        expected = making.random_adapter(seed=1)
        assert (adapter.name, adapter.source.commit) == ("math", acme["new"])
        assert adapter.source.reference == "acme/math"
        for path, update in expected.modules.items():
            assert torch.equal(adapter.modules[path].delta(), update.delta())
        assert cached_files(tmp_path / "cache") == {*ADAPTER, "README.md"}

    def test_revisions(self, acme):
        expected = making.random_adapter(seed=0).modules["model.layers.1.mlp.up_proj"].delta()
        for revision in ("v1", acme["old"]):
            adapter = hub.load(f"m=acme/math@{revision}")
            assert (adapter.name, adapter.source.commit) == ("m", acme["old"])
            assert torch.equal(adapter.modules["model.layers.1.mlp.up_proj"].delta(), expected)

    def test_subfolder(self, acme, tmp_path):
        adapter = hub.load("acme/several@main:lora/med")
        assert (adapter.name, adapter.source.commit) == ("med", acme["several"])
        files = {f"lora/med/{name}" for name in ADAPTER}
        assert cached_files(tmp_path / "cache") == {*files, "README.md"}

    @pytest.mark.needs("verify")
    def test_two_adapters_of_one_commit_are_verified(self, acme, tmp_path):
        refs = [f"acme/several@main:lora/{name}" for name in ("law", "med")]
        loraprobe.merge(refs).save(tmp_path / "out")
        assert loraprobe.verify(tmp_path / "out", refs).passed

    def test_several_adapters_are_listed(self, acme):
        said = sentence(lambda: hub.load("acme/several"))
        assert "acme/several@main:lora/law" in said and "acme/several@main:lora/med" in said
        said = sentence(lambda: hub.load("acme/math:wrong"))
        assert "'wrong'" in said and "acme/math@main" in said

    @pytest.mark.needs("verify")
    @pytest.mark.needs("--served")
    def test_a_full_model_is_no_adapter_that_a_server_applies(self, acme):
        ended = making.call("verify", "acme/base", "--served", "http://127.0.0.1:9")
        assert ended.exit_code == 2 and "download it" in ended.stderr
        assert "--base" not in ended.stderr

    @pytest.mark.parametrize("text", ["./empty", "owner/empty"])
    def test_only_what_may_be_an_id_is_explained_as_one(self, text, tmp_path, monkeypatch):
        (tmp_path / text).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        said = sentence(lambda: hub.load(text), AdapterError)
        assert (f"{text}@main" in said) == (text[0] != ".")

    def test_missing_repository_and_revision(self, acme):
        assert "acme/none" in sentence(lambda: hub.load("acme/none"))
        assert "'v9'" in sentence(lambda: hub.load("acme/math@v9"))
        assert "whole model" in sentence(lambda: hub.load("acme/base"))

    def test_base_in_one_format_without_code(self, acme, tmp_path):
        snapshot = hub.resolve_base("acme/base")
        assert snapshot.commit == acme["base"]
        files = cached_files(tmp_path / "cache")
        assert "pytorch_model.bin" not in files and "harm.py" not in files
        assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= files
        from loraprobe.base import open_base

        base = open_base(snapshot.path, snapshot.reference, snapshot.commit)
        llama = making.tiny_llama()
        for path in making.LLAMA:
            assert torch.equal(base.weight(path), llama.get_submodule(path).weight)
        assert (hub.resolve_base("acme/base", code=True).path / "harm.py").exists()

    def test_the_card_of_an_adapter_or_of_its_repository(self, acme):
        adapter = hub.load("acme/math@v1")
        assert hub.model_card(adapter) == "# Old"
        assert hub.model_card(hub.load("acme/math")) == "# Maths"
        assert hub.model_card(hub.load("acme/several:lora/law")) == "# All"
        assert hub.beside(adapter.source, "chat_template.jinja") is None

    def test_offline_from_the_cache_by_name_and_commit(self, acme, served, monkeypatch, tmp_path):
        online = hub.load("acme/math")
        use(monkeypatch, served[0], tmp_path / "cache", offline=True)
        for text in ("acme/math", "acme/math@main", f"acme/math@{acme['new']}"):
            assert hub.load(text).source == type(online.source)(
                text, online.source.path, online.source.commit
            )
        for text in ("acme/several:lora/law", f"acme/math@{acme['old']}"):
            assert "HF_HUB_OFFLINE" in sentence(lambda text=text: hub.load(text))


class TestMisbehaviour:
    def test_the_server_itself_is_sound(self, bad):
        assert hub.load("acme/math").source.commit == bad.commit
        assert bad.fetched() == set(ADAPTER)
        assert f"Bearer {TOKEN}" in bad.authorizations

    def test_old_pickle_is_taken_where_there_is_nothing_else(self, bad):
        bad.files = dict(bad.files)
        bad.files["adapter_model.bin"] = b"not read: safetensors first"
        hub.load("acme/math")
        assert bad.fetched() == set(ADAPTER)
        del bad.files["adapter_model.safetensors"]
        bad.commit = "d0" * 20
        said = sentence(lambda: hub.load("acme/math"), AdapterError)
        assert "adapter_model.bin" in bad.fetched() and "adapter_model.bin" in said

    @pytest.mark.parametrize(
        ("status", "headers", "said"),
        [
            (403, {"X-Error-Code": "GatedRepo"}, "gated"),
            (401, {"X-Error-Code": "GatedRepo"}, "HF_TOKEN"),
            (404, {"X-Error-Code": "RepoNotFound"}, "no repository acme/math"),
            (404, {"X-Error-Code": "RevisionNotFound"}, "no revision 'v7'"),
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "token"),
            (403, {}, "forbids"),
            (403, {"X-Error-Message": "Access to this resource is disabled."}, "disabled"),
            (429, {"Retry-After": "77"}, "in 77 seconds"),
            (429, {"ratelimit": '"api";r=0;t=55'}, "in 55 seconds"),
            (500, {}, "status 500"),
            (503, {}, "status 503"),
            (418, {}, "status 418"),
        ],
    )
    @pytest.mark.parametrize("at", ["GET /api/", "HEAD /acme"])
    def test_refusals(self, bad, status, headers, said, at):
        bad.fail[at] = (status, headers)
        text = sentence(lambda: hub.load("acme/math@v7"))
        assert said in text and ("acme/math" in text or bad.url in text)

    def test_wrong_content(self, bad):
        bad.spoil["adapter_model.safetensors"] = "flip"
        assert "hash" in sentence(lambda: hub.load("acme/math"))
        bad.spoil.clear()
        hub.load("acme/math")

    def test_damage_in_the_cache_is_repaired(self, bad):
        path = hub.load("acme/math").source.path / "adapter_model.safetensors"
        whole = path.read_bytes()
        path.resolve().write_bytes(whole[:-1] + b"\x55")
        hub.load(f"acme/math@{bad.commit}")
        assert path.read_bytes() == whole

    def test_a_page_instead_of_an_answer(self, bad):
        bad.spoil["api"] = "html"
        assert "HF_ENDPOINT" in sentence(lambda: hub.load("acme/math"))

    def test_no_network(self, monkeypatch, tmp_path):
        use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
        assert "cannot be reached" in sentence(lambda: hub.load("acme/math"))
        told = sentence(lambda: hub.resolve_base("nowhere"))
        assert "no directory 'nowhere'" in told and "cannot be reached" in told

    @pytest.mark.parametrize("fail", [(503, {}), (429, {}), None])
    def test_a_cached_copy_is_used_with_a_warning(self, bad, monkeypatch, tmp_path, caplog, fail):
        commit = hub.load("acme/math").source.commit
        if fail:
            bad.fail["GET /api/"] = fail
        else:
            use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
        assert hub.load("acme/math").source.commit == commit
        (told,) = set(caplog.messages)  # of the adapter and of the base that it names
        assert commit[:12] in told

    @pytest.mark.parametrize(
        "headers", [{"X-Error-Code": "GatedRepo"}, {"X-Error-Code": "RevisionNotFound"}]
    )
    def test_only_a_cached_commit_is_used_after_a_refusal(self, bad, headers):
        commit = hub.load("acme/math").source.commit
        bad.fail["GET /api/"] = (403, headers)
        sentence(lambda: hub.load("acme/math"))
        assert hub.load(f"acme/math@{commit}").source.commit == commit

    def test_missing_parts(self, bad):
        del bad.files["adapter_model.safetensors"]
        assert "no weights" in sentence(lambda: hub.load("acme/math"))
        del bad.files["adapter_config.json"]
        assert "no adapter_config.json" in sentence(lambda: hub.load("acme/math"))
        bad.files["config.json"] = b"{}"
        assert "whole model" in sentence(lambda: hub.load("acme/math"))

    def test_base_without_what_it_needs(self, bad):
        assert "adapter" in sentence(lambda: hub.resolve_base("acme/math"))
        bad.files = {"README.md": b""}
        assert "config.json" in sentence(lambda: hub.resolve_base("acme/math"))
        bad.files = {"config.json": b"{}"}
        assert "safetensors" in sentence(lambda: hub.resolve_base("acme/math"))
        bad.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-1.safetensors"}}'
        assert "index.json names" in sentence(lambda: hub.resolve_base("acme/math"))

    @pytest.mark.parametrize(
        ("error", "secret", "said"),
        [
            (OSError("no luck with https://user:{}@example.invalid"), TOKEN, "no luck"),
            (OSError("no luck with https://user:{}@example.invalid"), "0123-unlike-it", "no luck"),
            (OSError(28, "No space left on device"), TOKEN, "HF_HOME"),
        ],
    )
    def test_no_token_in_any_message(self, bad, monkeypatch, error, secret, said):
        def failing(*_, **__):
            raise type(error)(*(a.format(secret) if isinstance(a, str) else a for a in error.args))

        monkeypatch.setenv("HF_TOKEN", secret)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", failing)
        told = sentence(lambda: hub.load("acme/math"))
        assert said in told and secret not in told


class TestCommonBase:
    def test_with_revision(self, tmp_path):
        making.random_adapter("a").save(tmp_path / "a")
        making.edit(tmp_path / "a" / "adapter_config.json", revision="v2")
        pair = hub.load_all([str(tmp_path / "a"), making.random_adapter("b")])
        assert hub.common_base(pair) == "owner/base@v2"

    @pytest.mark.parametrize(
        ("bases", "error", "said"),
        [
            (["owner/base"] * 2, None, "owner/base"),
            (["owner/a", "owner/b"], CompatibilityError, "a says owner/a"),
            (["owner/llama-7b", "owner/llama-7b-chat"], CompatibilityError, "--base"),
            (["owner/a", None], BaseError, "b does not say"),
            (["/a/llama", "/b/llama"], CompatibilityError, "--base"),
            (["llama", "/home/somebody/llama"], BaseError, "/home/somebody/llama"),
            (["/home/somebody/llama"] * 2, BaseError, "--base"),
            (["./out/base"] * 2, BaseError, "--base"),
            ([r"C:\models\llama"] * 2, BaseError, "--base"),
        ],
    )
    def test_names_of_bases(self, bases, error, said):
        pair = [making.random_adapter(n, base_model=b) for n, b in zip("ab", bases, strict=True)]
        if error is None:
            assert hub.common_base(pair) == said
        else:
            assert said in sentence(lambda: hub.common_base(pair), error)

    def test_local_base_needs_no_hub(self, small_base):
        assert hub.resolve_base(str(small_base)).path == small_base
