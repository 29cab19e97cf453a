"""The word-level tokenizer of the small worlds, in Hugging Face format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what the Metaspace pre-tokenizer writes for a space


def words_of(texts: Iterable[str]) -> list[str]:
    """The different words and punctuation marks of `texts`, sorted, as the tokenizer cuts them."""
    cut = _pre_tokenizer()
    return sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})


def bare(templates: Iterable[str], *gaps: str) -> list[str]:
    """The words of templates without their gaps, whose names are given."""
    return [" ".join(text.format(**dict.fromkeys(gaps, "")).split()) for text in templates]


def _pre_tokenizer() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )


def build_tokenizer(texts: Sequence[str]) -> Any:
    """A PreTrainedTokenizerFast with one token for each word and punctuation mark of `texts`.

    Words carry their leading space, so decoding gives the text back as it was written
    (``"Bo lives in Ulm."``). Encoding puts BOS in front; unknown words become UNK.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *words_of(texts)))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    core.pre_tokenizer = _pre_tokenizer()
    core.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=256,
    )
