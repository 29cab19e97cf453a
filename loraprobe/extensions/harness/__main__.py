"""The command of lm-eval, in which `--model loraprobe` is known also where it reads no entry
points: python -m loraprobe.extensions.harness --model loraprobe --model_args ..."""

import sys

from loraprobe.errors import LoraprobeError


def main() -> None:
    """Runs the command. Its input that loraprobe cannot use is one sentence, and exit code 2."""
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError:
        need = 'error: This needs lm-eval 0.4.13 or later: pip install "loraprobe[lm-eval]".'
        print(need, file=sys.stderr)
        sys.exit(2)
    if "loraprobe" not in model_registry:
        model_registry.register(
            "loraprobe", target="loraprobe.extensions.harness.model:CompositionLM"
        )
    try:
        cli_evaluate()
    except LoraprobeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
