"""LoRA changes what it is told to change, nothing else, and leaves a plain recognizer behind once it is merged."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.images import Frame, ImageProcessor
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
from glyphrun.text import DIGITS, Codec
from glyphrun.training.fit import TrainSettings, fit
from glyphrun.training.optim import make_optimizer
from tiny_vlm import FAMILIES, save_tiny, tiny_codec, tiny_vlm

CODEC = Codec(DIGITS, 2)
SMALL = {"image": (16, 24), "width": 16, "depth": 1, "heads": 2}
LORA = LoraSettings(rank=3, alpha=6.0)


def recognizer(name: str = "parseq-nano", seed: int = 1, **changes: object) -> Recognizer:
    torch.manual_seed(seed)
    settings = recognizer_settings(name, {"encoder": SMALL, "decoder_heads": 2, **changes})
    return build(settings, CODEC).eval()


class SubwordReader(Recognizer):
    """A decoder of transformers whose output layer is its embedding, behind one layer that sees; the parts nest."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(1)
        self.visual = nn.ModuleDict({"blocks": nn.Linear(6, 16), "merger": nn.Linear(16, 16)})
        self.model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=20,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                tie_word_embeddings=True,
            )
        ).eval()

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"vision": ("visual",), "projector": ("visual.merger",), "decoder": ("model",)}


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


def test_every_linear_layer_of_the_chosen_parts_is_updated_and_the_projections_of_attention_with_them():
    blocks = [f"encoder.blocks.0.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    attentions = [f"decoder.layers.0.{which}" for which in ("self_attn", "cross_attn")]
    decoder = [f"{attention}.{end}" for attention in attentions for end in ("in_proj_weight", "out_proj.weight")]
    decoder += [f"decoder.layers.0.linear{number}.weight" for number in (1, 2)] + ["head.weight"]
    expected = {
        ("vision",): {f"{name}.weight" for name in blocks},
        ("decoder",): set(decoder),
        ("projector",): {"fusion.legibility.weight"},
    }
    for targets, names in expected.items():
        model = recognizer(fusion="attention")
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        total = sum(shape.numel() for shape in shapes.values())
        apply_lora(model, LORA.model_copy(update={"targets": targets}))
        assert updates(model).keys() == names
        added = 3 * sum(sum(shapes[name]) for name in names)
        assert trainable_parameters(model) == (added, total + added)
        assert {update.scaling for update in updates(model).values()} == {2.0}


def test_a_step_of_training_moves_every_update_and_leaves_the_frozen_weights_bit_for_bit():
    model = recognizer(fusion="attention")
    apply_lora(model, LORA.model_copy(update={"targets": ("vision", "projector", "decoder"), "unfrozen": ("norms",)}))
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, 1e-2, 0.1)
    model.train()
    for _ in range(2):  # the first factor moves once the second is no longer nothing
        memory = model.encode(torch.rand(4, 2, 3, 16, 24), torch.ones(4, 2, dtype=torch.bool))
        model.loss(memory, CODEC.encode_batch(["12", "3", "45", "67"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(moved) == 2 * len(updates(model)) + 2 * 13  # scale and shift of 8 layer norms and the stem's 5


def test_what_is_unfrozen_is_trained_in_full_and_gets_no_update():
    def trained(*unfrozen: str) -> set[str]:
        model = recognizer(fusion="concatenate", encoder={**SMALL, "stem": "patch"})
        apply_lora(model, LoraSettings(rank=2, targets=("vision",), unfrozen=unfrozen))
        return {name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name}

    assert trained() == set()
    assert trained("head") == {"head.weight", "head.bias"}
    assert trained("embeddings") == {
        "encoder.pos_embed",
        "fusion.frame_embedding.table",
        "text_embed.embedding.weight",
        "pos_queries",
    }
    layers = ("encoder.blocks.0.norm1", "encoder.blocks.0.norm2", "encoder.norm", "decoder.norm")
    layers += tuple(f"decoder.layers.0.norm{which}" for which in ("1", "2", "_q", "_c"))
    assert trained("norms") == {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
    assert trained("projector", "head") == {"fusion.frame_embedding.table", "head.weight", "head.bias"}
    whole = trained("decoder")
    assert {"pos_queries", "decoder.layers.0.self_attn.in_proj_weight", "head.weight"} < whole
    assert all(name.startswith(("decoder.", "head.", "text_embed.", "pos_queries")) for name in whole)
    model = recognizer()
    apply_lora(model, LoraSettings(rank=2, targets=("decoder",), unfrozen=("head",)))
    assert "head.weight" not in updates(model)
    assert len(updates(model)) == 6


def test_a_part_inside_another_is_its_own_and_a_shared_matrix_gets_no_update():
    model = SubwordReader()
    apply_lora(model, LoraSettings(rank=2, targets=("projector",)))
    assert updates(model).keys() == {"visual.merger.weight"}
    model = SubwordReader()
    apply_lora(model, LoraSettings(rank=2, targets=("vision", "decoder")))
    assert "visual.blocks.weight" in updates(model)
    assert len(updates(model)) == 1 + 2 * 7  # the decoder's output layer is its embedding
    assert not any("lm_head" in name or "embed" in name for name in updates(model))
    model = SubwordReader()
    apply_lora(model, LoraSettings(rank=2, targets=("decoder",), unfrozen=("head",)))
    assert [name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name] == [
        "model.model.embed_tokens.weight"
    ]


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


def test_a_part_that_cannot_be_adapted_is_refused_with_the_parts_that_can():
    with pytest.raises(
        ValueError, match=r"lora\.targets names projector, and this parseq has no .* those with one are decoder, vision"
    ):
        apply_lora(recognizer(), LoraSettings(rank=2, targets=("projector",)))
    with pytest.raises(ValueError, match=r"lora\.unfrozen names projector, and this parseq has no such weights"):
        apply_lora(recognizer(), LoraSettings(rank=2, unfrozen=("projector",)))
    model = recognizer()
    apply_lora(model, LORA)
    with pytest.raises(ValueError, match="carries LoRA already"):
        apply_lora(model, LORA)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": -1}, "greater than or equal to 0"),
        ({"rank": 4, "targets": []}, "lora.targets names no part"),
        ({"targets": ["encoder"]}, "'vision', 'projector' or 'decoder'"),
        ({"targets": ["vision", "decoder"], "unfrozen": ["decoder"]}, "both name decoder"),
        ({"ranks": 4}, "Extra inputs"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        LoraSettings.model_validate(fields)


def tracklets() -> FrameArrays:
    """Sixteen items of noise with one to three frames and a label each."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 16)
    return FrameArrays.of_frames(
        [Frame(frame, (16, 24)) for frame in rng.integers(0, 256, (counts.sum(), 3, 16, 24), np.uint8)],
        np.concatenate([[0], counts.cumsum()]),
        tuple("".join(rng.choice(list(DIGITS), 2)) for _ in counts),
        tuple(f"s{number}" for number in range(len(counts))),
    )


def train(folder: Path, updates_before_death: int | None = None) -> None:
    """LoRA training with everything that draws numbers; killed after some updates, or left alone."""
    torch.set_num_threads(1)
    arrays, processor, done = tracklets(), ImageProcessor(height=16, width=24), 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == updates_before_death:
            os.kill(os.getpid(), signal.SIGKILL)

    if updates_before_death is not None:
        register_optimizer_step_post_hook(count)
    cpu = torch.device("cpu")
    model = recognizer(fusion="attention", dropout=0.2)
    apply_lora(model, LoraSettings(rank=2, dropout=0.3, targets=("vision", "decoder"), unfrozen=("norms",)))
    settings = TrainSettings(
        steps=7, batch_size=4, evaluate_every=4, checkpoint_every=2, warmup=1, learning_rate=1e-2, seed=5
    )
    reports = fit(
        model,
        CODEC,
        processor,
        arrays,
        lambda trained: evaluate(Engine(trained, CODEC, processor, device=cpu, precision="float32"), arrays),
        settings,
        folder,
        device=cpu,
        precision="float32",
    )
    assert [report.step for report in reports] == [4, 7]


def test_a_training_killed_and_continued_ends_with_the_updates_of_one_left_alone(tmp_path):
    train(tmp_path / "alone")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "torch._dynamo", "glyphrun.models.zoo", "glyphrun.training.fit"])
    process = processes.Process(target=train, args=(tmp_path / "killed", 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train(tmp_path / "killed")
    for file in ("weights.safetensors", "optimizer.safetensors"):
        expected, continued = (load_file(tmp_path / run / file) for run in ("alone", "killed"))
        assert expected.keys() == continued.keys()
        assert all(torch.equal(continued[name], expected[name]) for name in expected)
    stored = load_file(tmp_path / "alone" / "weights.safetensors")
    assert "decoder.layers.0.self_attn.parametrizations.in_proj_weight.0.lora_B" in stored
    assert float(stored["decoder.layers.0.self_attn.parametrizations.in_proj_weight.0.lora_B"].abs().max()) > 1e-3
