"""Names of bases: what may be published of them."""

import pytest

from loraprobe.adapters.names import public_name

CACHE = "/home/alice/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf/snapshots/0123abc"


IDS = """
gpt2 owner/name owner/name/ gpt2@v1 owner/name@v1.0 owner/name@refs/pr/1 owner/name@v2:lora/math
HuggingFaceTB/SmolLM2-135M-Instruct models/base
""".split()


@pytest.mark.parametrize("name", IDS)
def test_ids_of_the_hub_stay(name):
    assert public_name(name) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/alice/secret-project/base", "base"),
        ("/home/alice/secret-project/base/", "base"),
        ("./models/base", "base"),
        ("../base", "base"),
        ("~/models/base", "base"),
        ("home/alice/secret/base", "base"),
        (r"C:\Users\alice\models\base", "base"),
        ("C:/Users/alice/models/base", "base"),
        (r"\\server\share\alice\base", "base"),
        ("file:///home/alice/base", "base"),
        ("s3://bucket/alice/base", "base"),
        ("https://alice:hf_token@example.org/models/base?token=hf_token#x", "base"),
        ("https://alice:hf_token@example.org", "example.org"),
        ("/home/alice/模型", "模型"),
        ("/home/alice/my base", "my base"),
        (CACHE, "meta-llama/Llama-2-7b-hf"),
        (CACHE.replace("/", "\\").replace("meta-llama--Llama-2-7b-hf", "gpt2"), "gpt2"),
    ],
)
def test_of_a_path_the_last_part_is_left(path, name):
    assert public_name(path) == name


@pytest.mark.parametrize("nothing", [None, "", "/", ".", "..", "../..", "~", "./"])
def test_what_names_nothing_has_no_public_name(nothing):
    assert public_name(nothing) is None
