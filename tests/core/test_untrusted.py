"""The types of JSON values: nothing is converted, and true is no number."""

import math

import pytest
from pydantic import ValidationError

from loraprobe.adapters.config import CheckedConfig
from loraprobe.base.declared import BaseConfig

# Keys of an adapter's or a base's config -> the values of VALUES that they take.
KEYS = {
    "task_type": "none text",
    "target_modules": "none text empty texts",
    "target_parameters": "none empty texts",
    "layers_to_transform": "none zero four negative huge empty numbers",
    "init_lora_weights": "none text true",
    "use_dora": "none true",
    "lora_alpha": "zero four negative half",
    "r": "four",
    "rank_pattern": "none object ranks",
    "alpha_pattern": "none object ranks shares",
    "architectures": "none empty texts",
    "text_config": "none object ranks shares words",
    "vocab_size": "none zero four negative huge",
}
VALUES = {
    "none": None,
    "text": "a",
    "true": True,
    "zero": 0,
    "four": 4,
    "negative": -2,
    "huge": 10**400,
    "half": 0.5,
    "infinite": math.inf,
    "nan": math.nan,
    "empty": [],
    "texts": ["a"],
    "mixed": ["a", 1],
    "numbers": [1],
    "flags": [True],
    "object": {},
    "ranks": {"q": 4},
    "shares": {"q": 0.5},
    "words": {"q": "2"},
}


def takes(model, key, value) -> bool:
    try:
        model.model_validate({key: value, "unknown": value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("key", KEYS)
def test_each_key_takes_the_values_of_its_type_alone(key):
    model = CheckedConfig if key in CheckedConfig.model_fields else BaseConfig
    assert [name for name in VALUES if takes(model, key, VALUES[name])] == KEYS[key].split()
