"""RetroMAE: what is masked, what the decoder sees, and that both losses fall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bge_runtime import ConfigurationError, InputError, ModelNotFoundError, UnsupportedModelError
from bge_runtime.training import retromae_model
from bge_runtime.training.retromae_model import Collator, RetroMAE
from tests.checkpoints.encoder_tokenizers import ENGLISH
from tests.checkpoints.hub_cache import BY_NAME, Checkpoint, write_checkpoint

FAMILIES = ("bert", "xlmr")


def texts(count: int = 200) -> list[str]:
    """Neighbouring words of the vocabulary's own text, in lengths from 4 to 20; every fifth has words in pieces."""
    words = ENGLISH.split()
    generator = np.random.default_rng(5)
    found = []
    for number in range(count):
        start, length = generator.integers(len(words) - 20), generator.integers(4, 21)
        found.append(" ".join([*words[start : start + length], *(["unbelievably pandas"] if number % 5 == 0 else [])]))
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(
        place, Checkpoint(name="a/b", family=request.param, hidden=64, seed=3, positions=64, layers=2)
    )


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer(texts(), truncation=True, max_length=48)["input_ids"]


def special(tokenizer, batch):
    return torch.isin(batch["decoder_input_ids"], torch.tensor(tokenizer.all_special_ids))


def test_masks_depend_on_seed_epoch_and_line_and_not_on_the_batch(tokenizer, ids):
    batch = Collator(tokenizer, seed=7).collate(ids[:8], lines=range(8), epoch=0)
    again = Collator(tokenizer, seed=7)
    again.collate(ids[20:30], lines=range(20, 30), epoch=3)
    same = again.collate(ids[:8], lines=range(8), epoch=0)
    assert all(torch.equal(same[name], batch[name]) for name in batch)
    alone = again.collate([ids[2]], lines=[2], epoch=0)
    length = len(ids[2])
    assert torch.equal(alone["input_ids"][0], batch["input_ids"][2, :length])
    assert torch.equal(alone["decoder_attention_mask"][0], batch["decoder_attention_mask"][2, :length, :length])
    for others in ((Collator(tokenizer, seed=8), 0), (again, 1)):
        other = others[0].collate(ids[:8], lines=range(8), epoch=others[1])
        assert not torch.equal(other["labels"], batch["labels"])
        assert not torch.equal(other["decoder_attention_mask"], batch["decoder_attention_mask"])


def test_the_measured_rates_are_those_that_were_asked_for(tokenizer, ids):
    collator = Collator(tokenizer)
    assert (collator.measured_encoder_rate, collator.measured_decoder_rate) == (0, 0)
    batch = collator.collate(ids, lines=range(len(ids)), epoch=0)
    assert collator.measured_encoder_rate == pytest.approx(0.3, abs=0.02)
    assert collator.measured_decoder_rate == pytest.approx(0.5, abs=0.02)
    masked, plain = batch["labels"] != -100, ~special(tokenizer, batch)
    assert collator.measured_encoder_rate == pytest.approx(int(masked.sum()) / int(plain.sum()))
    pairs = plain[:, :, None] & plain[:, None] & ~torch.eye(plain.shape[1], dtype=torch.bool)
    hidden = pairs & ~batch["decoder_attention_mask"]
    assert collator.measured_decoder_rate == pytest.approx(int(hidden.sum()) / int(pairs.sum()))


def test_of_the_masked_tokens_most_are_shown_as_the_mask_and_some_as_another(tokenizer, ids):
    batch = Collator(tokenizer).collate(ids, lines=range(len(ids)), epoch=0)
    masked = batch["labels"] != -100
    shown, true = batch["input_ids"][masked], batch["decoder_input_ids"][masked]
    assert torch.equal(true, batch["labels"][masked])
    assert torch.equal(batch["input_ids"][~masked], batch["decoder_input_ids"][~masked])
    is_mask, is_true = shown == tokenizer.mask_token_id, shown == true
    assert float(is_mask.float().mean()) == pytest.approx(0.8, abs=0.05)
    assert float(is_true.float().mean()) == pytest.approx(0.1, abs=0.05)
    assert float((~is_mask & ~is_true).float().mean()) == pytest.approx(0.1, abs=0.05)


def test_special_tokens_and_padding_are_never_masked_nor_restored(tokenizer, ids):
    batch = Collator(tokenizer).collate(ids, lines=range(len(ids)), epoch=0)
    apart = special(tokenizer, batch)
    assert torch.all(batch["labels"][apart] == -100)
    assert torch.equal(batch["decoder_labels"] == -100, apart)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert torch.all(batch["input_ids"][padding] == tokenizer.pad_token_id)
    assert not batch["decoder_attention_mask"].transpose(1, 2)[padding].any()


def test_every_row_sees_the_sentence_vector_and_none_itself(tokenizer, ids):
    batch = Collator(tokenizer).collate(ids, lines=range(len(ids)), epoch=0)
    sees, restored = batch["decoder_attention_mask"], batch["decoder_labels"] != -100
    tokens = batch["attention_mask"].bool()
    assert not torch.diagonal(sees, dim1=1, dim2=2)[tokens].any()
    assert sees[:, :, 0][restored].all()
    assert sees.any(dim=2).all()
    rows = sees[0][restored[0]]
    assert len({tuple(row.tolist()) for row in rows}) > len(rows) // 2


def test_words_in_pieces_are_masked_whole_where_the_vocabulary_marks_them(tokenizer):
    text = tokenizer("unbelievably pandas eats bamboo near the river Thames")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(text)
    words = np.cumsum([not token.startswith("##") for token in tokens])
    found = []
    for epoch in range(50):
        masked = Collator(tokenizer).collate([text], lines=[0], epoch=epoch)["labels"][0] != -100
        found.append({int(masked[words == word].sum()) - int((words == word).sum()) for word in words[masked]})
    if "##s" in tokenizer.get_vocab():
        assert max(np.bincount(words)) > 2
        assert all(missing == {0} for missing in found)
    else:
        assert len(words) == len(set(words))


def test_a_text_of_one_long_word_gives_no_number_that_is_none(folder, tokenizer):
    text = tokenizer("zyxwvutsrq")["input_ids"]
    batch = Collator(tokenizer).collate([text], lines=[0], epoch=0)
    losses = RetroMAE.load(folder).eval()(**batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    if (batch["labels"] == -100).all():  # the word is larger than the rate
        assert losses["encoder_loss"] == 0


def test_both_losses_fall(folder, tokenizer, ids):
    model, collator = RetroMAE.load(folder, seed=1), Collator(tokenizer, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = np.random.default_rng(0)
    seen: list[tuple[float, float]] = []
    torch.manual_seed(0)
    model.train()
    for step in range(60):
        lines = generator.choice(len(ids), 10, replace=False).tolist()
        losses = model(**collator.collate([ids[line] for line in lines], lines=lines, epoch=step))
        assert losses["loss"] == losses["encoder_loss"] + losses["decoder_loss"]
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append((losses["encoder_loss"].item(), losses["decoder_loss"].item()))
    first, last = np.mean(seen[:5], axis=0), np.mean(seen[-5:], axis=0)
    assert (last < 0.85 * first).all(), (first, last)


def test_the_decoder_hears_of_the_encoder_through_the_sentence_vector_alone(folder, tokenizer, ids):
    model = RetroMAE.load(folder).eval()
    held = []
    model.encoder.register_forward_hook(lambda *call: held.append(call[-1].last_hidden_state))
    batch = Collator(tokenizer).collate(ids[:6], lines=range(6), epoch=0)
    loss = model(**batch)["decoder_loss"]
    (gradient,) = torch.autograd.grad(loss, held[0], retain_graph=True)
    assert (gradient[:, 0].abs().sum(dim=1) > 0).all()
    assert not gradient[:, 1:].any()
    loss.backward()
    assert all(weight.grad.any() for name, weight in model.encoder.encoder.named_parameters() if "key.bias" not in name)
    # What the encoder reads does not reach the decoder in another way: another text's words, the same sentence vector.
    other = model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert torch.allclose(other["decoder_loss"], loss)
    assert other["encoder_loss"] == 0


def test_a_row_s_prediction_depends_on_what_it_sees(folder, tokenizer, ids):
    model = RetroMAE.load(folder).eval()
    batch = Collator(tokenizer).collate([ids[0]], lines=[0], epoch=0)
    outputs = []
    model.decoder.register_forward_hook(lambda *call: outputs.append(call[-1]))
    model(**batch)
    place = 3
    changed = batch["decoder_input_ids"].clone()
    changed[0, place] = batch["decoder_input_ids"][0, place + 1]
    model(**{**batch, "decoder_input_ids": changed})
    differs = (outputs[0] - outputs[1]).abs().amax(dim=2)[0] > 1e-6
    assert torch.equal(differs, batch["decoder_attention_mask"][0, :, place])


def test_the_decoder_is_a_layer_of_bert(folder, tokenizer, ids):
    model = RetroMAE.load(folder).eval()
    layer = model.encoder.encoder.layer[0]
    ours = model.decoder
    pairs = {
        ours.query: layer.attention.self.query,
        ours.key: layer.attention.self.key,
        ours.value: layer.attention.self.value,
        ours.attended: layer.attention.output.dense,
        ours.norm1: layer.attention.output.LayerNorm,
        ours.up: layer.intermediate.dense,
        ours.down: layer.output.dense,
        ours.norm2: layer.output.LayerNorm,
    }
    for mine, theirs in pairs.items():
        mine.load_state_dict(theirs.state_dict())
    states = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours(states, states, torch.ones(2, 9, 9, dtype=torch.bool))
        wanted = layer(states)
    assert torch.allclose(found, wanted[0] if isinstance(wanted, tuple) else wanted, atol=1e-5)


def test_large_vocabularies_are_scored_in_parts(folder, tokenizer, ids, monkeypatch):
    model = RetroMAE.load(folder).eval()
    batch = Collator(tokenizer).collate(ids[:6], lines=range(6), epoch=0)

    def gradients():
        model.zero_grad()
        losses = model(**batch)
        losses["loss"].backward()
        return losses["loss"].detach(), model.encoder.embeddings.word_embeddings.weight.grad.clone()

    whole = gradients()
    monkeypatch.setattr(retromae_model, "LOGITS", 5 * model.encoder.config.vocab_size)
    parts = gradients()
    assert torch.allclose(whole[0], parts[0])
    assert torch.allclose(whole[1], parts[1], atol=1e-5)


def test_the_encoder_keeps_the_checkpoint_s_names_and_weights(folder):
    model, again, other = RetroMAE.load(folder, seed=1), RetroMAE.load(folder, seed=1), RetroMAE.load(folder, seed=2)
    stored, held = load_file(folder / "model.safetensors"), model.encoder.state_dict()
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], stored[name]) for name in stored)
    assert not model.has_own_head
    mine, same, others = (each.state_dict() for each in (model, again, other))
    assert all(torch.equal(mine[name], same[name]) for name in mine)
    for part in ("decoder", "head"):
        assert any(not torch.equal(mine[name], others[name]) for name in mine if name.startswith(part))
    tables = [name for name, weight in mine.items() if weight.shape == mine[TABLE].shape]
    assert len(tables) == 2
    assert len({mine[name].data_ptr() for name in tables}) == 1


TABLE = "encoder.embeddings.word_embeddings.weight"


def test_a_checkpoint_s_own_head_is_used_and_no_pooler_is_made_up(folder, tokenizer, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    found = RetroMAE.load(tmp_path)
    assert found.has_own_head
    assert not any("pooler" in name for name in found.encoder.state_dict())
    assert found.encoder.state_dict().keys() == model.base_model.state_dict().keys()
    states = torch.randn(1, 5, 64)
    head = model.cls if hasattr(model, "cls") else model.lm_head
    assert torch.equal(found.head(states), head(states))


def test_a_seed_outside_is_left_alone(folder):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    RetroMAE.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_trained_is_refused(folder, tokenizer, tmp_path):
    with pytest.raises(ConfigurationError, match=r"encoder_rate=1\.5 is not allowed"):
        Collator(tokenizer, encoder_rate=1.5)
    with pytest.raises(ConfigurationError, match=r"seed=-1 is not allowed"):
        Collator(tokenizer, seed=-1)
    with pytest.raises(InputError, match=r"Text 9 has 1 tokens"):
        Collator(tokenizer).collate([[0]], lines=[9], epoch=0)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    broken = write_checkpoint(tmp_path / "broken", Checkpoint(name="a/b", family="bert", hidden=64, seed=3))
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"has no weights of encoder\.layer\.1\.output\.dense\.weight"):
        RetroMAE.load(broken)


def test_decoders_are_refused(tmp_path):
    place = write_checkpoint(tmp_path, BY_NAME["BAAI/bge-reranker-v2-gemma"])
    with pytest.raises(UnsupportedModelError, match=r"'gemma', and RetroMAE trains 'bert'"):
        RetroMAE.load(place)
