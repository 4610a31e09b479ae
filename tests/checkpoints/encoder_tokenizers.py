"""Tokenizers of BERT's and XLM-RoBERTa's kind over a small vocabulary that is written down, not trained."""

from __future__ import annotations

import math
import string
from collections import Counter
from functools import cache
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

__all__ = ["bert_tokenizer", "vocabulary", "xlmr_tokenizer"]

ENGLISH = """
Represent this sentence for searching relevant passages: Represent this query for retrieving relevant
documents: Represent this document for retrieval: Represent this question for searching relevant passages:
Convert this example into vector to look for useful examples: Convert this example into vector for
retrieval: Embed this dialogue to find useful historical dialogues: Embed this historical dialogue for
retrieval: Embed this text chunk for finding useful historical chunks: Embed this historical text chunk for
retrieval: Transform this user request for fetching helpful tool descriptions: Transform this tool
description for retrieval: Encode this query and context for searching relevant passages: Encode this
passage for retrieval: The giant panda, sometimes called a panda bear or simply panda, is a bear species
endemic to China. It eats bamboo. A cat sat on the mat while the dog slept in the garden. The quick brown
fox jumps over the lazy dog. Paris is the capital of France and Berlin is the capital of Germany. London
lies on the river Thames. How do I turn the query instruction off? Pass an empty string as the instruction.
What is the weather today? Machine learning models map a text to a vector; similar texts have a high cosine
similarity. Water boils at 100 degrees. The heart pumps blood through the body. Vitamin D helps the bones to
take up calcium. Aspirin thins the blood. def add(first, second): return first + second. Memory, tokens,
batches, threads and caches make it fast or slow. red green blue yellow one two three four five six seven
eight nine ten word short long very much more less new old
"""
CHINESE = """
为这个句子生成表示以用于检索相关文章：大熊猫是中国特有的熊类动物，主要以竹子为食。北京是中国的首都。
如何关闭查询指令？今天的天气怎么样？机器学习模型把文本映射成向量，相似的文本有较高的相似度。水在一百度时沸腾。
猫坐在垫子上，狗睡在花园里。巴黎是法国的首都，柏林是德国的首都。心脏把血液送到全身。我喜欢读书（尤其是小说）。
"""
FULL_WIDTH = "：，。？（）、"

Family = Literal["bert", "xlmr"]


@cache
def vocabulary(family: Family) -> tuple[str, ...]:
    """Every token, in id order."""
    return _bert_vocabulary() if family == "bert" else tuple(piece for piece, _ in _xlmr_pieces())


def bert_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer."""
    vocab = {token: index for index, token in enumerate(vocabulary("bert"))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def xlmr_tokenizer() -> Tokenizer:
    """A Unigram tokenizer as converted from SentencePiece."""
    tokenizer = Tokenizer(models.Unigram(list(_xlmr_pieces()), unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _words() -> Counter[str]:
    plain = ENGLISH.translate({ord(mark): " " for mark in string.punctuation})
    return Counter(plain.split())


def _characters() -> list[str]:
    return list(string.digits + string.ascii_letters + string.punctuation)


def _ideographs() -> list[str]:
    return sorted(set(CHINESE) - set(FULL_WIDTH) - set("\n"))


def _bert_vocabulary() -> tuple[str, ...]:
    # The published ids: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103.
    head = ["[PAD]", *(f"[unused{index}]" for index in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    singles = [mark for mark in _characters() if not mark.isupper()]
    endings = [f"##{letter}" for letter in string.ascii_lowercase + string.digits]
    endings += [f"##{ending}" for ending in ("s", "ed", "er", "es", "ing", "ion", "ly", "tion", "ment", "ous")]
    words = sorted({word.lower() for word in _words()})
    stems = sorted({word[:4] for word in words if len(word) > 5})
    return tuple(dict.fromkeys([*head, *singles, *FULL_WIDTH, *_ideographs(), *endings, *words, *stems]))


@cache
def _xlmr_pieces() -> tuple[tuple[str, float], ...]:
    counts = _words()
    total = sum(counts.values())
    scores = {"▁": -4.0}
    scores |= {f"▁{word}": math.log(count / total) for word, count in sorted(counts.items())}
    scores |= dict.fromkeys(("ed", "er", "es", "ing", "ion", "ly", "tion", "ment", "ous"), -7.0)
    scores |= dict.fromkeys((*_characters(), *FULL_WIDTH, *_ideographs()), -9.0)
    head = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return (*head, *scores.items(), ("<mask>", 0.0))
