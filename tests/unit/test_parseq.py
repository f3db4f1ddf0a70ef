from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.permutations import order_masks
from glyphrun.models.recognizer import Memory
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import Codec

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
TOYS = ["toy94", "toy10"]
LATIN = "".join(chr(33 + place) for place in range(94))


@pytest.fixture(scope="module")
def oracles() -> Path:
    """Tensors and numbers of the published implementation, which lie beside a developer's checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("GLYPHRUN_SHARED", beside)) / "oracles"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; it holds the published implementation's numbers (set GLYPHRUN_SHARED)")
    return folder


def of_items(memory: Memory, items: Tensor) -> Memory:
    """The memory of some items only; items: (K,) long."""
    rows = torch.full(memory.frame_mask.shape, -1)
    rows[memory.frame_mask] = torch.arange(len(memory.frame_tokens))
    kept = memory.frame_mask[items]
    mask = None if memory.mask is None else memory.mask[items]
    return Memory(memory.tokens[items], mask, memory.frame_tokens[rows[items][kept]], kept)


class Toy:
    """A published toy: our model with its weights, and what the published one computed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.card: dict[str, Any] = json.loads((folder / "parseq_toy.json").read_text())[name]
        self.tensors = load_file(folder / f"parseq_{name}.safetensors")
        self.codec = Codec(self.card["charset"], self.card["max_label_length"])
        encoder = EncoderSettings(
            image=self.card["img_size"],
            patch=self.card["patch_size"],
            width=self.card["embed_dim"],
            depth=self.card["enc_depth"],
            heads=self.card["enc_num_heads"],
            mlp_ratio=self.card["enc_mlp_ratio"],
        )
        settings = PARSeqSettings(
            encoder=encoder, decoder_heads=self.card["dec_num_heads"], decoder_depth=self.card["dec_depth"]
        )
        self.model = PARSeq(settings, len(self.card["charset"]), self.card["max_label_length"]).eval()
        weights = {name[6:]: tensor for name, tensor in self.tensors.items() if name.startswith("state.")}
        self.model.load_state_dict(weights)
        with torch.no_grad():
            self.memory = self.model.encode(self.tensors["images"][:, None], torch.ones(6, 1, dtype=torch.bool))


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest, oracles: Path) -> Toy:
    return Toy(oracles, request.param)


def to_the_full_length(model: PARSeq, memory: Memory) -> Tensor:
    """Autoregressive log-probabilities without an early stop: (B, L + 1, V)."""
    state, tokens, steps = model.start(memory, 1), torch.full((len(memory.tokens),), model.begin), []
    for _ in range(model.max_length + 1):
        log_probs, state = model.step(state, tokens)
        steps.append(log_probs)
        tokens = log_probs.argmax(-1)
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize(("name", "parameters"), [("parseq-tiny", 6_018_143), ("parseq-small", 23_832_671)])
def test_named_sizes_have_the_published_parameters_by_name_and_shape(oracles, name, parameters):
    published = json.loads((oracles / "parseq_manifest.json").read_text())[name]
    model = build(recognizer_settings(name), Codec(LATIN, 25))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters == published["parameters"]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published["state_dict"]


def test_the_encoder_computes_the_published_memory(toy):
    torch.testing.assert_close(toy.memory.tokens, toy.tensors["memory"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_logits_are_the_published_ones_with_0_1_and_2_refinements(toy, mode):
    found = to_the_full_length(toy.model, toy.memory) if mode == "ar" else toy.model.parallel(toy.memory)
    for refinements in range(3):
        expected = toy.tensors[f"logits.{mode}.refine{refinements}"].log_softmax(-1)
        torch.testing.assert_close(found, expected, **TOLERANCE)
        found = toy.model.refine(toy.memory, found.argmax(-1))


@torch.no_grad()
def test_search_reads_the_published_strings(toy):
    """The toys do not end their readings, so a reading has one character more than the longest label."""
    read = search(toy.model, toy.memory, DecodeSettings(refine_iters=1))
    strings = [toy.codec.decode(hypotheses[0].tokens) for hypotheses in read]
    assert strings == toy.card["decoded_ar_refine1"]
    assert {len(string) for string in strings} == {toy.model.max_length + 1}


def test_the_loss_is_the_published_one(toy):
    """With labels of at most three characters the set of orders is complete, and chance plays no part."""
    targets = toy.codec.encode_batch(toy.card["loss_labels"])
    for seed in range(3):
        torch.manual_seed(seed)
        assert toy.model.loss(toy.memory, targets).item() == pytest.approx(toy.card["loss"], abs=1e-4)


def deep_parseq(characters: int = 5, max_length: int = 4, depth: int = 2) -> PARSeq:
    torch.manual_seed(3)
    encoder = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)
    settings = PARSeqSettings(encoder=encoder, decoder_heads=2, decoder_depth=depth, fusion="concatenate")
    model = PARSeq(settings, characters, max_length).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is asked
        model.pos_queries.mul_(40)
        model.text_embed.embedding.weight.mul_(20)
        model.head.weight.mul_(4)
    return model


@torch.no_grad()
def tracklets(model: PARSeq, items: int = 4) -> Memory:
    """Items of 1, 2, 3, … frames, so that every item has a memory mask of its own."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(items, items, 3, 16, 16, generator=generator)
    return model.encode(frames, torch.ones(items, items, dtype=torch.bool).tril())


@torch.no_grad()
def full_pass(model: PARSeq, memory: Memory, tokens: Tensor) -> Tensor:
    """Every step of a left-to-right reading at once, no caches; tokens: (B, P) from begin on → (B, P, V)."""
    embedded = model.text_embed(tokens)
    content = torch.cat([embedded[:, :1], embedded[:, 1:] + model.pos_queries[:, : tokens.shape[1] - 1]], dim=1)
    content_mask, query_mask = order_masks(torch.arange(tokens.shape[1] + 1))
    queries = model.pos_queries[:, : tokens.shape[1]].expand(len(tokens), -1, -1)
    mask = None if memory.mask is None else memory.mask[:, None, None, :]
    keys_values = model.decoder.memory_keys_values(memory)
    return model.head(model.decoder(queries, content, keys_values, mask, content_mask, query_mask)).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cached_steps_equal_one_pass_without_caches(depth):
    model = deep_parseq(depth=depth)
    memory = tracklets(model)
    tokens = torch.tensor([[6, 1, 2, 3, 4], [6, 5, 5, 5, 5], [6, 4, 3, 2, 1], [6, 2, 1, 2, 1]])
    state, stepped = model.start(memory, 1), []
    for position in range(tokens.shape[1]):
        log_probs, state = model.step(state, tokens[:, position])
        stepped.append(log_probs)
    torch.testing.assert_close(torch.stack(stepped, 1), full_pass(model, memory, tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_beams_share_one_memory_and_read_as_if_each_had_its_own():
    model = deep_parseq()
    memory = tracklets(model)
    tokens = torch.tensor([[6, 1, 2], [6, 3, 4], [6, 5, 1]]).repeat(4, 1)  # three beams for each of four items
    state = model.start(memory, 3)
    assert [len(keys) for keys, _ in state.memory] == [4, 4]  # not 12
    for position in range(3):
        log_probs, state = model.step(state, tokens[:, position])
    own = of_items(memory, torch.arange(4).repeat_interleave(3))
    torch.testing.assert_close(log_probs, full_pass(model, own, tokens)[:, -1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_reordered_beams_and_kept_items_read_on_as_if_alone():
    model = deep_parseq()
    memory = tracklets(model)
    tokens = torch.tensor([[6, 1], [6, 2]]).repeat(4, 1)
    state = model.start(memory, 2)
    for position in range(2):
        _, state = model.step(state, tokens[:, position])
    crossed = torch.tensor([1, 0, 2, 2, 5, 4, 7, 7])  # beams continue from other beams of their own item
    kept = torch.tensor([3, 1])
    log_probs, state = model.step(state.reorder(crossed).keep(kept), torch.tensor([5, 4, 3, 2]))
    histories = torch.tensor([[6, 2, 5], [6, 2, 4], [6, 1, 3], [6, 1, 2]])
    alone = full_pass(model, of_items(memory, torch.tensor([3, 3, 1, 1])), histories)[:, -1]
    torch.testing.assert_close(log_probs, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_refining_readings_of_several_lengths_together_equals_refining_each_alone():
    model = deep_parseq()
    memory = tracklets(model)
    tokens = torch.tensor([[0, 3, 3, 3, 3], [4, 0, 1, 1, 1], [1, 2, 3, 0, 5], [1, 2, 3, 4, 5]])
    together = model.refine(memory, tokens)
    for item in range(4):
        alone = model.refine(of_items(memory, torch.tensor([item])), tokens[item : item + 1])
        torch.testing.assert_close(together[item : item + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_what_follows_the_first_end_never_changes_a_refinement(depth):
    model = deep_parseq(depth=depth)
    memory = tracklets(model)
    one, other = torch.tensor([[1, 2, 0, 5, 5]] * 4), torch.tensor([[1, 2, 0, 3, 4]] * 4)
    torch.testing.assert_close(model.refine(memory, one), model.refine(memory, other), atol=0, rtol=0)


@torch.no_grad()
def test_a_refined_position_does_not_see_its_own_first_reading():
    model = deep_parseq(depth=1)
    memory = tracklets(model)
    before = torch.tensor([[1, 2, 3, 4, 5]] * 4)
    for position in range(5):
        after = before.clone()
        after[:, position] = 1 + before[:, position] % 5
        changed = (model.refine(memory, before) - model.refine(memory, after)).abs().amax((0, 2))
        assert changed[position] == 0
        if position < 4:  # the last character of a reading is context for no position
            assert (changed[[place for place in range(5) if place != position]] > 0).all()


@pytest.mark.parametrize("texts", [[""], ["", ""], ["7"], ["7", ""], ["7", "", "42"]])
def test_empty_and_one_character_labels_train(texts):
    torch.manual_seed(0)
    encoder = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)
    model = PARSeq(PARSeqSettings(encoder=encoder, decoder_heads=2), 10, 3)
    frames = torch.randn(len(texts), 1, 3, 16, 16)
    memory = model.encode(frames, torch.ones(len(texts), 1, dtype=torch.bool))
    loss = model.loss(memory, Codec("0123456789", 3).encode_batch(texts))
    loss.backward()
    assert 1.5 < loss.item() < 4.0  # near log 11 = 2.4
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.head.weight.grad.abs().sum() > 0
