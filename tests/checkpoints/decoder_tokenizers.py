"""Tokenizers of Gemma's, Llama's and Qwen2's kind over small vocabularies that are written down, not trained."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

__all__ = ["decoder_tokenizer", "decoder_tokenizer_files", "decoder_vocabulary"]

Family = Literal["gemma", "llama", "qwen2"]

# Each word is one token behind a space; those of BARE also where none stands before them.
WORDS = """
Given a web search query, retrieve relevant passages that answer the query. Given a question in text, retrieve SQL
queries that are appropriate responses to the question. Given a query A and a passage B, determine whether the
passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'. Predict whether passage B
contains an answer to query A. Predict whether passages A and B have the same meaning. Predict whether queries A and B
are asking the same thing. Predict whether argument A and counterargument B express contradictory opinions. yes no
Instruct Query what is panda bear of
"""
BARE = "Yes yes No no A B Given Predict Instruct Query what"
MARKS = (*string.digits, *string.ascii_letters, *string.punctuation, "：")
NEWLINES = ("\n", "\n\n")
# Of the published files: ids 0 and up, and what stands around a text.
SPECIAL: dict[Family, tuple[str, ...]] = {
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    "llama": ("<unk>", "<s>", "</s>"),
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}
NAMED: dict[Family, dict[str, str]] = {
    "gemma": {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"},
    "llama": {"bos": "<s>", "eos": "</s>", "pad": "</s>", "unk": "<unk>"},
    "qwen2": {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
}
CLASSES: dict[Family, str] = {"gemma": "GemmaTokenizer", "llama": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def decoder_vocabulary(family: Family, added: Sequence[str] = ()) -> tuple[str, ...]:
    """Every token in id order; `added` are the tokens that a repository puts behind its base model's."""
    pieces, _ = _pieces(family)
    return (*pieces, *(SPECIAL[family] if family == "qwen2" else ()), *added)


def decoder_tokenizer(family: Family, *, add_eos: bool = False, added: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a family; all but Qwen2's put the beginning-of-text token in front.

    Args:
        family: Gemma 1 and 2; Llama, Mistral and MiniCPM; Qwen2 and Qwen3.
        add_eos: Whether the end-of-text token stands behind each text.
        added: Special tokens behind the base model's, such as `<instruct>`.
    """
    pieces, merges = _pieces(family)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    if family == "qwen2":
        tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.BPE(vocab, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        spaces = normalizers.Replace(" ", "▁")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if family == "llama":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
            steps.append(decoders.Strip(" ", 1, 0))
        else:
            tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL[family], *added)])
    tokenizer.post_processor = _around(tokenizer, family, add_eos)
    return tokenizer


def decoder_tokenizer_files(
    family: Family,
    *,
    add_eos: bool = False,
    added: Sequence[str] = (),
    max_length: int = 32768,
    padding_side: Literal["left", "right"] = "left",
) -> dict[str, bytes]:
    """The tokenizer files of a repository.

    Args:
        family: As for `decoder_tokenizer`.
        add_eos: As for `decoder_tokenizer`; said in `tokenizer_config.json`, too.
        added: As for `decoder_tokenizer`.
        max_length: What `tokenizer_config.json` says, in tokens.
        padding_side: What `tokenizer_config.json` says.
    """
    tokenizer = decoder_tokenizer(family, add_eos=add_eos, added=added)
    named = {f"{name}_token": token for name, token in NAMED[family].items()}
    extra = [*SPECIAL[family][-2:], *added] if family != "llama" else [*added]
    flags: dict[str, Any] = {
        "gemma": {"add_bos_token": True, "add_eos_token": add_eos},
        "llama": {"add_bos_token": True, "add_eos_token": add_eos, "legacy": True},
        "qwen2": {"add_prefix_space": False, "bos_token": None, "errors": "replace", "split_special_tokens": False},
    }[family]
    config = {
        **flags,
        **named,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): _described(token) for token in (*SPECIAL[family], *added)
        },
        "additional_special_tokens": extra,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": padding_side,
        "tokenizer_class": CLASSES[family],
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json({**named, "additional_special_tokens": extra}),
    }


@cache
def _pieces(family: Family) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The pieces of the model in id order, and its merges; a word grows letter by letter from its left end."""
    space = "Ġ" if family == "qwen2" else "▁"
    words = "".join(" " if mark in string.punctuation else mark for mark in WORDS).split()
    merges = _chains([*(space + word for word in words), *BARE.split()])
    if family == "qwen2":
        newline = "Ċ"
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges.append((newline, newline))
        merges += [("ï", "¼"), ("ï¼", "ļ")]  # the bytes of the full-width colon
        return tuple(dict.fromkeys([*alphabet, *map("".join, merges)])), tuple(merges)
    merges.append((space, space))
    newlines = NEWLINES if family == "gemma" else ()
    if newlines:
        merges.append(("\n", "\n"))
    octets = [f"<0x{value:02X}>" for value in range(256)]
    pieces = [*SPECIAL[family], *octets, space, *MARKS, *newlines, *map("".join, merges)]
    return tuple(dict.fromkeys(pieces)), tuple(merges)


def _chains(words: Iterable[str]) -> list[tuple[str, str]]:
    chains = ((word[:end], word[end]) for word in words for end in range(1, len(word)))
    return list(dict.fromkeys(chains))


def _around(tokenizer: Tokenizer, family: Family, add_eos: bool) -> processors.PostProcessor:
    named = NAMED[family]
    bos = [named["bos"]] if "bos" in named else []
    eos = [named["eos"]] if add_eos else []
    if not bos and not eos:
        return processors.ByteLevel(trim_offsets=False)
    return processors.TemplateProcessing(
        single=[*bos, "$A", *eos],
        pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*bos, *eos)],
    )


def _described(token: str) -> dict[str, Any]:
    sides = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **sides, "special": True}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
