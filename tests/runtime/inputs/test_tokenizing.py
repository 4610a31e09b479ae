"""Token ids, lengths and offsets, against the tokenizers library's own encoding."""

from __future__ import annotations

import pytest

import bge_runtime
from bge_runtime.inputs.tokenizing import Framed, Tokenizing, characters, copied
from tests.checkpoints.decoder_tokenizers import decoder_tokenizer
from tests.checkpoints.encoder_tokenizers import bert_tokenizer, xlmr_tokenizer
from tests.contracts.concurrency import in_threads

TEXTS = ["The giant panda eats bamboo.", "", "大熊猫：竹子", "zymurgy " * 30, "a  b\n\tc", "\N{SNOWMAN}"]
FAMILIES = {"bert": bert_tokenizer, "xlmr": xlmr_tokenizer}


@pytest.fixture(params=FAMILIES, ids=list(FAMILIES))
def tokenizer(request):
    return FAMILIES[request.param]()


def as_lists(sequences):
    return [(list(each.ids), list(each.type_ids)) for each in sequences]


def test_texts_get_the_ids_that_the_tokenizer_gives(tokenizer):
    tokens = Tokenizing(tokenizer).texts(TEXTS, 512)
    assert as_lists(tokens.sequences) == as_lists(tokenizer.encode(text) for text in TEXTS)
    assert tokens.truncated == 0


def test_pairs_get_the_ids_that_the_tokenizer_gives(tokenizer):
    pairs = [(query, document) for query in TEXTS for document in TEXTS]
    tokens = Tokenizing(tokenizer).pairs(pairs, 1024)
    assert as_lists(tokens.sequences) == as_lists(tokenizer.encode(*pair) for pair in pairs)


def test_a_forked_child_which_the_tokenizers_threads_are_missing_gets_the_same_ids(tokenizer, monkeypatch):
    expected = Tokenizing(tokenizer).texts(TEXTS, 512)
    monkeypatch.setattr("bge_runtime.inputs.tokenizing.FIRST_PROCESS", 0)
    assert Tokenizing(tokenizer).texts(TEXTS, 512).sequences == expected.sequences


@pytest.mark.parametrize("limit", [16, 33, 64])
def test_a_long_pair_loses_the_end_of_its_document_and_keeps_its_special_tokens(tokenizer, limit):
    reference = FAMILIES["bert" if tokenizer.token_to_id("[CLS]") else "xlmr"]()
    reference.enable_truncation(limit, strategy="only_second")
    pair = ("The giant panda", TEXTS[3])
    tokens = Tokenizing(tokenizer).pairs([pair], limit)
    assert as_lists(tokens.sequences) == as_lists([reference.encode(*pair)])
    assert tokens.truncated == 1


@pytest.mark.parametrize("limit", [16, 40, 512])
def test_a_long_query_keeps_three_quarters(tokenizer, limit):
    query = "panda " * 1000
    ids = Tokenizing(tokenizer).pairs([(query, "dog " * 1000)], limit).sequences[0].ids.tolist()
    panda = tokenizer.encode("panda panda", add_special_tokens=False).ids[1]
    assert len(ids) == limit
    assert ids.count(panda) == int(0.75 * limit)


@pytest.mark.parametrize("limit", [3, 10, 50])
def test_a_long_text_loses_its_end(tokenizer, limit):
    tokens = Tokenizing(tokenizer).texts(["panda dog", TEXTS[3], TEXTS[3]], limit)
    full = tokenizer.encode(TEXTS[3]).ids
    assert list(tokens.sequences[1].ids) == [*full[: limit - 1], full[-1]]
    assert tokens.truncated == (3 if limit == 3 else 2)


def test_the_original_tokenizers_state_is_cleared_on_a_private_copy(tokenizer):
    plain = tokenizer.encode(TEXTS[3]).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokens = Tokenizing(copied(tokenizer))
    assert tokens.texts([TEXTS[3], "panda"], 512).sequences[0].ids.tolist() == plain
    assert tokens.count([TEXTS[3]]) == [len(plain)]
    assert tokenizer.truncation["max_length"] == 8
    assert tokenizer.padding["length"] == 16


def test_counts_include_the_special_tokens_and_are_not_cut(tokenizer):
    assert Tokenizing(tokenizer).count(TEXTS) == [len(tokenizer.encode(text).ids) for text in TEXTS]


def test_offsets_cover_every_character_but_spaces(tokenizer):
    text = "The pandas, 大熊猫!"
    tokens = Tokenizing(tokenizer)
    spans = tokens.offsets(text)
    covered = {place for start, end in spans for place in range(start, end)}
    assert {text[place] for place in set(range(len(text))) - covered} <= {" "}
    assert spans == sorted(spans)
    assert len(spans) == tokens.count([text])[0] - tokens.count([""])[0]


def test_threads_with_varying_lengths_get_their_own_lengths(tokenizer):
    tokens = Tokenizing(tokenizer)

    def lengths(limit):
        return {len(sequence.ids) for _ in range(50) for sequence in tokens.texts([TEXTS[3]] * 4, limit).sequences}

    assert in_threads([lambda limit=limit: lengths(limit) for limit in range(8, 16)]) == [
        {limit} for limit in range(8, 16)
    ]


def test_embedder_counts_and_offsets_are_the_models_own(hub_cache):
    embedder = bge_runtime.Embedder()
    text = "The panda eats bamboo."
    assert embedder.count_tokens([text, ""]) == [7, 2]
    assert [text[start:end] for start, end in embedder.token_offsets(text)] == ["The", "panda", "eats", "bamboo", "."]
    with pytest.raises(bge_runtime.InputError):
        embedder.count_tokens("panda")
    with pytest.raises(bge_runtime.InputError):
        embedder.token_offsets(None)


FRAMED = {
    **FAMILIES,
    "gemma": lambda: decoder_tokenizer("gemma", add_eos=True, added=("<instruct>", "<query>")),
    "llama": lambda: decoder_tokenizer("llama", add_eos=True, added=("<instruct>", "<query>", "<response>")),
    "qwen2": lambda: decoder_tokenizer("qwen2"),
}


@pytest.mark.parametrize("family", FRAMED)
@pytest.mark.parametrize("examples", ["", "<instruct>a\n<query>panda\n<response>bear\n\n"], ids=["plain", "examples"])
def test_a_text_in_a_frame_is_cut_between_its_head_and_its_tail(family, examples):
    tokenizer, head, tail = FRAMED[family](), "<instruct>Given a query\n<query>", "\n<response>"
    text = "what is panda, 大熊猫: bear?\n\nYes  or no \n"
    full = Tokenizing(tokenizer).count([head + text + tail])[0]
    before = len(tokenizer.encode(examples, add_special_tokens=False).ids)
    allowed = [tokenizer.encode(examples + head + text[:end] + tail).ids for end in range(len(text) + 1)]
    least = len(tokenizer.encode(head + tail).ids) + 2
    for limit in range(least, full + 4):
        tokens = Tokenizing(tokenizer).texts([Framed(examples, head, text, tail), "x"], limit)
        ids = list(tokens.sequences[0].ids)
        assert ids in allowed
        assert len(ids) <= limit + before
        # A character of four bytes goes as a whole, and the tail is counted alone.
        assert tokens.truncated == (ids != allowed[-1])
        assert ids == allowed[-1] or len(ids) >= limit + before - 8
        assert list(tokens.sequences[1].ids) == tokenizer.encode("x").ids
    assert ids == allowed[-1]


def test_what_waits_in_a_queue_takes_five_bytes_a_token(tokenizer):
    sequence = Tokenizing(tokenizer).texts(["zymurgy " * 500], 512).sequences[0]
    assert memoryview(sequence.ids).nbytes + memoryview(sequence.type_ids).nbytes == 5 * sequence.length


def test_the_size_of_an_item_is_its_characters():
    assert characters(["panda", ("panda", "dog"), Framed("a", "bc", "", "d"), ("name", object())]) == [5, 8, 4, 4]
