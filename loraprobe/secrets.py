"""Access tokens and passwords never leave this process in anything that loraprobe writes."""

from __future__ import annotations

import os
import re

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")
HIDDEN = "***"


def scrub(text: str) -> str:
    """A text without access tokens and without the user:password@ of an address."""
    for name in VARIABLES:
        secret = os.environ.get(name, "").strip()
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
    return _IN_ADDRESS.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, text))
