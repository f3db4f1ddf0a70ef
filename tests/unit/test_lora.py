"""LoRA leaves a plain recognizer behind once it is merged, which answers as the unmerged one did."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from glyphrun.models.lora import (
    LoraSettings,
    LowRankUpdate,
    apply_lora,
    carries_lora,
    merge_lora,
    trainable_parameters,
    updates,
)
from glyphrun.models.parseq import PARSeq
from glyphrun.models.query_digits import QueryDigits
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import ZOO, build, recognizer_settings
from lora_recognizers import CODEC, LORA, SMALL, SubwordReader, recognizer
from tiny_vlm import FAMILIES, save_tiny, tiny_codec, tiny_vlm


def answers(model: Recognizer) -> Tensor:
    """Log-probabilities, or logits, of two fixed items through every path that a recognizer reads by."""
    drawn = torch.Generator().manual_seed(0)
    if isinstance(model, SubwordReader):
        seen = model.visual["merger"](model.visual["blocks"](torch.randn(2, 5, 6, generator=drawn)))
        return model.model(inputs_embeds=seen).logits.flatten()
    frames = torch.randn(2, 3, 3, 16, 24, generator=drawn)
    memory = model.encode(frames, torch.tensor([[True, True, False], [True, True, True]]))
    if isinstance(model, QueryDigits):
        ranked = sorted((reading.tokens, reading.log_prob) for item in model.rank(memory, 111) for reading in item)
        return torch.tensor([log_prob for _, log_prob in ranked])
    assert isinstance(model, PARSeq)
    first, state = model.start(memory, 1), None
    token = torch.full((len(memory.tokens),), model.begin)
    log_probs, state = model.step(first, token)
    second, _ = model.step(state, log_probs.argmax(-1))
    at_once = model.parallel(memory)
    return torch.cat([log_probs.flatten(), second.flatten(), model.refine(memory, at_once.argmax(-1)).flatten()])


@torch.no_grad()
def train_a_little(model: Recognizer, seed: int = 2, size: float = 0.05) -> None:
    """Give every update a value, as a training would."""
    drawn = torch.Generator().manual_seed(seed)
    for update in updates(model).values():
        for factor in (update.a, update.b):
            factor.add_(torch.randn(factor.shape, generator=drawn) * size)


EVERY = ["parseq", "parseq over frames", "parseq of two layers", "query digits", "transformers"]


def one_of(which: str) -> Recognizer:
    if which == "transformers":
        return SubwordReader()
    if which == "query digits":
        return recognizer("query-digits-nano")
    fusion = {"parseq": "none", "parseq over frames": "attention", "parseq of two layers": "concatenate"}[which]
    return recognizer(fusion=fusion, decoder_depth=2 if which == "parseq of two layers" else 1)


@pytest.mark.parametrize("which", EVERY)
@torch.no_grad()
def test_a_merged_recognizer_answers_as_the_unmerged_one_and_is_a_plain_one_again(which):
    plain, model = one_of(which), one_of(which)
    before = answers(plain)
    apply_lora(model, LORA)
    assert torch.equal(answers(model), before)  # the updates begin at nothing
    train_a_little(model)
    unmerged = answers(model)
    assert float((unmerged - before).abs().max()) > 0.01
    merge_lora(model)
    torch.testing.assert_close(answers(model), unmerged, atol=1e-4, rtol=0)
    assert not carries_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in plain.named_modules()
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(answers(plain), unmerged, atol=1e-4, rtol=0)


def small_recognizer(name: str, folder: Path) -> tuple[Recognizer, Tensor]:
    """A recognizer of any kind with targets for two items."""
    torch.manual_seed(1)
    if name in FAMILIES:
        if not folder.exists():
            save_tiny(folder, name)
        return tiny_vlm(folder), tiny_codec(folder).encode_batch(["12", "3"])
    return build(recognizer_settings(name), CODEC).eval(), CODEC.encode_batch(["12", "3"])


@pytest.mark.parametrize("name", [*(name for name in ZOO if name.endswith("-nano")), *FAMILIES])
def test_every_kind_of_recognizer_learns_through_lora_and_answers_the_same_once_merged(tmp_path, name):
    model, targets = small_recognizer(name, tmp_path / "model")
    height, width = (56, 84) if name in FAMILIES else (model.settings.input.height, model.settings.input.width)
    frames, mask = torch.rand(2, 1, 3, height, width), torch.ones(2, 1, dtype=torch.bool)

    def loss(of: Recognizer) -> Tensor:
        return of.loss(of.encode(frames, mask), targets)

    before = loss(model).item()
    apply_lora(model, LORA)
    trained, of_all = trainable_parameters(model)
    assert 0 < trained < 0.2 * of_all
    train_a_little(model, size=0.2)
    unmerged = loss(model)
    unmerged.backward()
    assert all(value.grad.abs().sum() > 0 for value in model.parameters() if value.requires_grad)
    assert abs(unmerged.item() - before) > 1e-3
    merge_lora(model)
    assert loss(model).item() == pytest.approx(unmerged.item(), abs=1e-4)
    again, _ = small_recognizer(name, tmp_path / "model")
    again.load_state_dict(model.state_dict())
    assert loss(again).item() == pytest.approx(unmerged.item(), abs=1e-4)


@torch.no_grad()
def test_a_copy_can_be_merged_while_its_original_is_trained_on():
    model = recognizer()
    apply_lora(model, LORA)
    train_a_little(model)
    unmerged = answers(model)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    torch.testing.assert_close(answers(merged), unmerged, atol=1e-4, rtol=0)
    assert torch.equal(answers(model), unmerged)
    train_a_little(model, seed=3)
    assert float((answers(model) - unmerged).abs().max()) > 0.01
    torch.testing.assert_close(answers(merged), unmerged, atol=1e-4, rtol=0)


def test_rank_0_is_full_training():
    model = recognizer()
    before = dict(model.named_parameters())
    apply_lora(model, LoraSettings(rank=0, targets=("projector",)))
    assert dict(model.named_parameters()) == before
    assert trainable_parameters(model)[0] == trainable_parameters(model)[1] > 0
    assert updates(model) == {}


@torch.no_grad()
def test_dropout_changes_what_training_sees_alone_and_keeps_its_mean():
    model = recognizer(encoder={**SMALL, "stem": "patch"})  # no statistics of batches that training would change
    apply_lora(model, LoraSettings(rank=3, dropout=0.5))
    train_a_little(model)
    unmerged = answers(model)
    assert torch.equal(answers(model), unmerged)
    model.train()
    assert not torch.equal(answers(model), answers(model))
    merge_lora(model)
    torch.testing.assert_close(answers(model.eval()), unmerged, atol=1e-4, rtol=0)

    torch.manual_seed(0)
    weight = torch.randn(12, 4)
    update = LowRankUpdate(weight, LoraSettings(rank=2, alpha=2.0, dropout=0.25))
    nn.init.ones_(update.lora_B)
    seen = torch.stack([update(weight) - weight for _ in range(4000)])
    dense = update.factors().dense()
    torch.testing.assert_close(seen.mean(0), dense, atol=0.03, rtol=0)
    assert float(dense.abs().max()) > 0.3
    assert float((seen == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


@torch.no_grad()
def test_updates_of_a_base_in_half_precision_are_trained_in_float32():
    model = recognizer().bfloat16()
    apply_lora(model, LORA)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    merge_lora(model)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
