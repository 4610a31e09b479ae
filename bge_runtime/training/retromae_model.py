"""RetroMAE (arXiv:2205.12035): a vector is good when a weak decoder can restore the whole text from it.

The encoder reads a text with few words masked and learns to restore those; its first token's state is the sentence
vector. A decoder of one layer restores every token of the text from that vector and, for each token, from another half
of the other tokens ("enhanced decoding"). What the paper leaves open follows the authors' code: FlagEmbedding,
research/old-examples/pretrain/retromae_pretrain, data.py, modeling.py and enhancedDecoder.py. The sentence vector is
always the first token's state, as there, also of models that pool by the mean afterwards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.models import WordPiece
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from bge_runtime import ConfigurationError, InputError, ModelNotFoundError, UnsupportedModelError

__all__ = ["Collator", "RetroMAE"]

IGNORED = -100  # what torch's cross-entropy leaves out
# Different samples of a text's tokens that its rows choose from, as in the authors' collator.
SAMPLES = 128
# Of the tokens that the encoder has to restore: shown as [MASK], and as any token; the others as they are (BERT).
SHOWN_MASKED, SHOWN_RANDOM = 0.8, 0.1
# Numbers of the logits that are held at once: 256 MiB of them.
LOGITS = 2**26
ARCHITECTURES = ("bert", "camembert", "roberta", "xlm-roberta")


class Collator:
    """Makes batches of texts, each masked by a seed of its own: number, epoch and line make the same masks again.

    A rate is the share of the tokens that are not special, rounded to whole tokens, one at least. In WordPiece
    vocabularies whole words are masked, in random order; one that would exceed the rate is passed over. In others
    (XLM-R's) each token counts as a word. The authors take the share of all tokens, the two special ones included,
    which masks more of short texts; and as their code knows BERT's special tokens only, half of the rows of XLM-R lack
    the sentence vector among their keys, which they do not here.
    """

    def __init__(self, tokenizer: Any, *, seed: int = 0, encoder_rate: float = 0.3, decoder_rate: float = 0.5) -> None:
        """Take a tokenizer of transformers.

        Args:
            tokenizer: It says which tokens are special, which go on with a word, and how many there are.
            seed: Of all masks, 0 or more.
            encoder_rate: Share of the tokens that the encoder has to restore.
            decoder_rate: Share of the tokens that each row of the decoder does not see.

        Raises:
            ConfigurationError: A value is not allowed, or the tokenizer has no mask token.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"seed={seed!r} is not allowed. Pass a whole number of at least 0.")
        for name, rate in (("encoder_rate", encoder_rate), ("decoder_rate", decoder_rate)):
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
                raise ConfigurationError(f"{name}={rate!r} is not allowed. Pass a share between 0 and 1.")
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ConfigurationError(
                f"The tokenizer has mask_token={tokenizer.mask_token!r} and pad_token={tokenizer.pad_token!r}, and "
                "RetroMAE needs both. Use an encoder's, such as BERT's or XLM-R's."
            )
        self._seed, self._encoder_rate, self._decoder_rate = seed, encoder_rate, decoder_rate
        self._mask_id, self._pad_id, self._size = tokenizer.mask_token_id, tokenizer.pad_token_id, len(tokenizer)
        self._special = np.zeros(self._size, bool)
        self._special[tokenizer.all_special_ids] = True
        self._goes_on = _goes_on(tokenizer)
        # Encoder: masked, maskable. Decoder: hidden, that could be.
        self._counts = np.zeros(4, np.int64)

    @property
    def measured_encoder_rate(self) -> float:
        """Share that was masked so far of the tokens that are not special; 0 before the first batch."""
        return float(self._counts[0] / max(self._counts[1], 1))

    @property
    def measured_decoder_rate(self) -> float:
        """Share that was hidden so far from rows that restore a token, of the other tokens that are not special."""
        return float(self._counts[2] / max(self._counts[3], 1))

    def collate(self, texts: Sequence[Sequence[int]], *, lines: Sequence[int], epoch: int) -> dict[str, torch.Tensor]:
        """Return a batch, padded to the longest text.

        Args:
            texts: Token ids of each text, special tokens included, the sentence's first, and cut.
            lines: Number of each text in the data; the masks of a text depend on it and not on its batch.
            epoch: How often the data has been read before.

        Returns:
            What `RetroMAE.forward` takes: int64 of shape (n, longest), and `decoder_attention_mask`, bool of shape
            (n, longest, longest): which keys each row sees.

        Raises:
            InputError: A text has fewer than two tokens.
        """
        shape = (len(texts), max(map(len, texts), default=0))
        ids = np.full(shape, self._pad_id, np.int64)
        shown, mask = ids.copy(), np.zeros(shape, np.int64)
        labels, restored = np.full(shape, IGNORED), np.full(shape, IGNORED)
        sees = np.zeros((*shape, shape[1]), bool)
        sees[:, :, 0] = True  # of rows of padding nothing is asked, but a softmax over nothing is no number
        for row, (text, line) in enumerate(zip(texts, lines, strict=True)):
            own, length = np.asarray(text, np.int64), len(text)
            if length < 2:
                raise InputError(f"Text {line} has {length} tokens. Pass ids with the special tokens before and after.")
            generator = np.random.default_rng((self._seed, epoch, line))
            words = self._words(own)
            masked, hidden = self._drawn(words, generator)
            ids[row, :length], mask[row, :length] = own, 1
            shown[row, :length] = self._disguised(own, masked, generator)
            labels[row, :length] = np.where(masked, own, IGNORED)
            restored[row, :length] = np.where(words >= 0, own, IGNORED)
            sees[row, :length, :length] = ~hidden & ~np.eye(length, dtype=bool)
            self._count(words >= 0, masked, hidden)
        batch = {
            "input_ids": shown,
            "attention_mask": mask,
            "labels": labels,
            "decoder_input_ids": ids,
            "decoder_attention_mask": sees,
            "decoder_labels": restored,
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _words(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the word that each token belongs to, -1 for special tokens."""
        plain = ~self._special[ids]
        follows = plain & np.concatenate(([False], plain[:-1]))
        begins = plain & ~(follows & self._goes_on[ids])
        return np.where(plain, np.cumsum(begins) - 1, -1)

    def _drawn(
        self, words: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return what is masked for the encoder, [length], and what is hidden from the decoder's rows, [rows, keys]."""
        length = len(words)
        masked = _samples(words, 1, self._encoder_rate, generator)[0]
        samples = _samples(words, min(length, SAMPLES), self._decoder_rate, generator)
        return masked, samples[generator.integers(len(samples), size=length)]

    def _disguised(
        self, ids: NDArray[np.int64], masked: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return the tokens that the encoder sees."""
        draw = generator.random(len(ids))
        random = np.where(draw < SHOWN_MASKED + SHOWN_RANDOM, generator.integers(self._size, size=len(ids)), ids)
        return np.where(masked, np.where(draw < SHOWN_MASKED, self._mask_id, random), ids)

    def _count(self, plain: NDArray[np.bool_], masked: NDArray[np.bool_], hidden: NDArray[np.bool_]) -> None:
        tokens = int(plain.sum())
        pairs = hidden[np.ix_(plain, plain)]
        self._counts += (int(masked.sum()), tokens, int(pairs.sum() - np.trace(pairs)), tokens * (tokens - 1))


class RetroMAE(nn.Module):
    """An encoder with its masked-language head, and the decoder that restores texts from its sentence vectors.

    Tensors are shared: the head ends in the encoder's table of words, and the decoder reads the encoder's embeddings.

    Attributes:
        encoder: Body of the model; its tensors have the names of the checkpoint's own.
        head: Masked-language head, of encoder and decoder alike.
        decoder: One layer, dropped after training.
        has_own_head: Whether the checkpoint brought the head; otherwise all of it but the table of words is new.
    """

    def __init__(self, encoder: Any, head: nn.Module, *, has_own_head: bool = True, seed: int = 0) -> None:
        """Take the parts and make a decoder.

        Args:
            encoder: Body of BERT, RoBERTa or XLM-R in transformers, in float32.
            head: States to logits over the vocabulary.
            has_own_head: Whether the head was trained before.
            seed: Of the decoder's first weights.
        """
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.has_own_head = has_own_head
        self.decoder = _Decoder(encoder.config, torch.Generator().manual_seed(seed))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, seed: int = 0) -> Self:
        """Read a model's folder, in float32.

        Args:
            folder: An encoder as transformers or sentence-transformers save it, with or without a head. Whether
                its weights may be pickled is for the caller to decide.
            seed: Of what the folder does not hold: the decoder and, in embedding models, the head.

        Raises:
            UnsupportedModelError: It is no encoder of this kind.
            ModelNotFoundError: Weights are missing.
        """
        place = os.fspath(folder)
        kind = AutoConfig.from_pretrained(place, local_files_only=True).model_type
        if kind not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{place!r} is of the architecture {kind!r}, and RetroMAE trains {', '.join(map(repr, ARCHITECTURES))}."
                " Use an encoder of these."
            )
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, missing = _read(AutoModel, place)
            masked_lm, headless = _read(AutoModelForMaskedLM, place)
            head = masked_lm.cls if hasattr(masked_lm, "cls") else masked_lm.lm_head
            model = cls(encoder, head, has_own_head=not headless, seed=seed)
        if lost := [name for name in sorted(missing) if not name.startswith("pooler.")]:
            raise ModelNotFoundError(f"{place!r} has no weights of {', '.join(lost[:4])}. Copy the whole folder again.")
        if missing:
            encoder.pooler = None  # invented by transformers; it would be saved as if it were the model's
        # Of the body with its pooler, which the other one lacks: what is saved has all tensors that came.
        masked_lm.get_output_embeddings().weight = encoder.get_input_embeddings().weight
        return model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        decoder_attention_mask: torch.Tensor,
        decoder_labels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `Collator.collate`.

        Args:
            input_ids: What the encoder reads, int64 [n, length].
            attention_mask: 1 for tokens, 0 for padding, int64 [n, length].
            labels: Tokens that it restores, -100 elsewhere, int64 [n, length].
            decoder_input_ids: The text as it is, int64 [n, length].
            decoder_attention_mask: Which keys each row of the decoder sees, bool [n, length, length].
            decoder_labels: Tokens that it restores, -100 elsewhere, int64 [n, length].

        Returns:
            `encoder_loss` and `decoder_loss`, mean cross-entropies over the tokens to restore, and `loss`, their sum.
        """
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        sentence = states[:, :1]
        embedded = self.encoder.embeddings(input_ids=decoder_input_ids)
        # Positions are added to the sentence vector through the embeddings' own norm, in the queries and not as a key.
        queries = self.encoder.embeddings(inputs_embeds=sentence.expand_as(embedded))
        keys = torch.cat((sentence, embedded[:, 1:]), dim=1)
        restored = self.decoder(queries, keys, decoder_attention_mask)
        losses = {
            "encoder_loss": self._loss(states, labels),
            "decoder_loss": self._loss(restored, decoder_labels),
        }
        return {"loss": losses["encoder_loss"] + losses["decoder_loss"], **losses}

    def _loss(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of the tokens that have a label; 0 where none has."""
        wanted = labels != IGNORED
        states, labels = states[wanted], labels[wanted]
        rows = max(LOGITS // self.encoder.config.vocab_size, 1)
        parts = list(zip(torch.split(states, rows), torch.split(labels, rows), strict=True))
        if len(parts) == 1:
            total = self._summed(*parts[0])
        else:
            # The logits of XLM-R's 250 002 tokens would take gigabytes: they are computed again for the gradient.
            total = torch.stack([checkpoint(self._summed, *part, use_reentrant=False) for part in parts]).sum()
        return total / max(len(labels), 1)

    def _summed(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(states).float(), labels, reduction="sum")


class _Decoder(nn.Module):
    """One layer of BERT whose queries are others than its keys, and whose rows see different keys."""

    def __init__(self, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.query, self.key, self.value, self.attended = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._activation = ACT2FN[config.hidden_act]
        self._heads = config.num_attention_heads
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(0.0, config.initializer_range, generator=generator)
                    module.bias.zero_()

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """Return states [n, length, width] for queries and keys of the same shape; `sees` is bool [n, rows, keys]."""
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
            attn_mask=sees[:, None],
            dropout_p=self.attention_dropout.p if self.training else 0.0,
        )
        states = self.norm1(queries + self.dropout(self.attended(attended.transpose(1, 2).flatten(2))))
        inner: torch.Tensor = self.dropout(self.down(self._activation(self.up(states))))
        found: torch.Tensor = self.norm2(states + inner)
        return found

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:2], self._heads, -1).transpose(1, 2)


def _samples(words: NDArray[np.int64], count: int, rate: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw whole words, many times over at once.

    Args:
        words: The word of each token, -1 for those that are never drawn.
        count: How many samples.
        rate: Share of the tokens that can be drawn.
        generator: Where chance comes from.

    Returns:
        Which tokens each sample holds, bool [count, tokens].
    """
    plain = words >= 0
    drawn = np.zeros((count, len(words)), bool)
    sizes = np.bincount(words[plain])
    if not len(sizes):
        return drawn
    left = np.full(count, max(round(rate * int(plain.sum())), 1))
    taken = np.zeros((count, len(sizes)), bool)
    samples = np.arange(count)
    for word in generator.random((count, len(sizes))).argsort(axis=1).T:
        fits = sizes[word] <= left
        taken[samples, word] = fits
        left -= np.where(fits, sizes[word], 0)
    drawn[:, plain] = taken[:, words[plain]]
    return drawn


def _goes_on(tokenizer: Any) -> NDArray[np.bool_]:
    """Return which tokens go on with the word before them; none outside WordPiece, as in the authors' code."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if not isinstance(model, WordPiece):
        return np.zeros(len(tokenizer), bool)
    prefix = model.continuing_subword_prefix
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([isinstance(token, str) and token.startswith(prefix) for token in tokens])


def _read(kind: Any, folder: str) -> tuple[Any, list[str]]:
    """Return a model of transformers, and the tensors that its folder does not hold."""
    model, told = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    return model, list(told["missing_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling that the head is new, which is as it should be, and from showing bars."""
    logger, shown = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
