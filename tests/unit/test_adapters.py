"""An adapter alone is small, fits its own base only, and several of them make exactly the sum or mean of their updates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glyphrun.adapters import (
    AdapterError,
    load_adapter,
    merge_adapters,
    merge_into_bundle,
    read_adapter,
    save_adapter,
)
from glyphrun.bundle import BundleError, load_engine, read_manifest, save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.lora import LoraSettings, apply_lora, carries_lora, merge_lora, plain_parameters, updates
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.state import stored_tensors
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec
from glyphrun.training.optim import make_optimizer

CODEC = Codec(DIGITS, 2)
SMALL = {"image": (16, 24), "width": 16, "depth": 1, "heads": 2}
BOTH = LoraSettings(rank=2, alpha=4.0, unfrozen=("norms",))
DECODER = LoraSettings(rank=5, alpha=1.0, targets=("decoder",), unfrozen=("head", "embeddings"))


def base(seed: int = 1, name: str = "parseq-nano", **changes: object) -> Recognizer:
    torch.manual_seed(seed)
    settings = recognizer_settings(name, {"encoder": SMALL, "decoder_heads": 2, "fusion": "attention", **changes})
    return build(settings, CODEC).eval()


def trained(lora: LoraSettings, seed: int, start: Recognizer | None = None) -> Recognizer:
    """A base after three steps with LoRA on noise of its own."""
    model = start or base()
    torch.manual_seed(seed)
    apply_lora(model, lora)
    optimizer = make_optimizer(model, 3e-2, 0.0)
    model.train()
    for _ in range(3):
        memory = model.encode(torch.rand(4, 2, 3, 16, 24) * seed, torch.ones(4, 2, dtype=torch.bool))
        model.loss(memory, CODEC.encode_batch(["12", "3", "45", "67"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def answers(model: Recognizer) -> Tensor:
    frames = torch.randn(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return model.parallel(model.encode(frames, torch.tensor([[True, True, False], [True, True, True]])))


def changes(model: Recognizer) -> dict[str, Tensor]:
    """By how much each weight of a trained recognizer differs from the base, as dense matrices."""
    start = dict(base().named_parameters())
    found = {name: (value - start[name]).detach() for name, value in plain_parameters(model).items()}
    for name, update in updates(model).items():
        found[name] = found[name] + update.dense().detach()
    return found


def test_an_adapter_gives_back_what_was_trained(tmp_path):
    for number, lora in enumerate((BOTH, DECODER)):
        model = trained(lora, 2)
        assert float((answers(model) - answers(base())).abs().max()) > 0.05
        save_adapter(tmp_path / str(number), model, lora)
        again = base()
        assert load_adapter(tmp_path / str(number), again) == lora
        assert torch.equal(answers(again), answers(model))
        assert {name for name, value in again.named_parameters() if value.requires_grad} == {
            name for name, value in model.named_parameters() if value.requires_grad
        }
        merge_lora(again)
        torch.testing.assert_close(answers(again), answers(model), atol=1e-4, rtol=0)


def test_an_adapter_is_much_smaller_than_its_recognizer(tmp_path):
    torch.manual_seed(0)
    model = build(recognizer_settings("parseq-tiny"), CODEC)
    save_file(stored_tensors(model), tmp_path / "whole.safetensors")
    lora = LoraSettings(rank=4)
    apply_lora(model, lora)
    save_adapter(tmp_path / "adapter", model, lora)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["adapter.json", "adapter.safetensors"]
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < 0.05 * (tmp_path / "whole.safetensors").stat().st_size


def test_an_adapter_of_another_base_is_refused_and_the_recognizer_left_as_it_was(tmp_path):
    save_adapter(tmp_path / "a", trained(BOTH, 2), BOTH)
    other = base(seed=9)
    before = answers(other)
    with pytest.raises(
        AdapterError, match=r"a was trained on other weights than this parseq has: pos_queries differs, "
    ):
        load_adapter(tmp_path / "a", other)
    with pytest.raises(AdapterError, match="was trained on other weights"):
        merge_adapters(other, [tmp_path / "a"])
    assert torch.equal(answers(other), before)
    assert not carries_lora(other)
    with pytest.raises(AdapterError, match="was trained on a parseq, and this is a query-digits"):
        load_adapter(tmp_path / "a", base(name="query-digits-nano"))
    with pytest.raises(AdapterError, match="carries LoRA already"):
        load_adapter(tmp_path / "a", trained(BOTH, 2))
    nearly = base()
    with torch.no_grad():
        nearly.head.weight[0, 0] += 1e-6
    with pytest.raises(AdapterError, match=r"head\.weight differs, 1 of \d+ in all; give the recognizer"):
        load_adapter(tmp_path / "a", nearly)


def test_what_an_adapter_trained_in_full_may_differ_in_the_base(tmp_path):
    """A head of its own is part of the adapter, so the base's does not matter."""
    model = trained(DECODER, 2)
    save_adapter(tmp_path / "a", model, DECODER)
    other = base()
    with torch.no_grad():
        other.head.bias.fill_(3)
    load_adapter(tmp_path / "a", other)
    assert torch.equal(answers(other), answers(model))


def test_a_damaged_or_absent_adapter_is_said_to_be(tmp_path):
    with pytest.raises(AdapterError, match=r"nothing is no adapter: it has no adapter\.json"):
        load_adapter(tmp_path / "nothing", base())
    save_adapter(tmp_path / "a", trained(BOTH, 2), BOTH)
    (tmp_path / "a" / "adapter.safetensors").rename(tmp_path / "kept")
    with pytest.raises(AdapterError, match=r"a is no adapter: it has no adapter\.safetensors"):
        load_adapter(tmp_path / "a", base())
    content = bytearray((tmp_path / "kept").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / "adapter.safetensors").write_bytes(content)
    for use in (load_adapter, lambda folder, recognizer: merge_adapters(recognizer, [folder])):
        with pytest.raises(AdapterError, match=r"adapter\.safetensors was changed: .* copy it again"):
            use(tmp_path / "a", base())
    (tmp_path / "kept").rename(tmp_path / "a" / "adapter.safetensors")
    manifest = json.loads((tmp_path / "a" / "adapter.json").read_text())
    manifest["lora"]["targets"] = ["decoder"]
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(manifest))
    model = base()
    with pytest.raises(AdapterError, match=r"a does not hold what its adapter\.json says, encoder\.blocks\.0\."):
        load_adapter(tmp_path / "a", model)
    assert torch.equal(answers(model), answers(base()))
    assert not carries_lora(model)
    (tmp_path / "a" / "adapter.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(AdapterError, match=r"(?s)adapter\.json is damaged.*lora"):
        read_adapter(tmp_path / "a")


def test_a_base_of_another_shape_is_refused_where_the_adapter_was_trained_in_full(tmp_path):
    save_adapter(tmp_path / "a", trained(DECODER, 2), DECODER)
    wider = base()
    wider.head = torch.nn.Linear(16, 12)
    with pytest.raises(AdapterError, match=r"head\.bias is \(11,\) and its place \(12,\)"):
        load_adapter(tmp_path / "a", wider)
    wider.head, wider.second = base().head, torch.nn.Linear(1, 1)
    with pytest.raises(AdapterError, match=r"it knows no second\.weight"):
        merge_adapters(wider, [tmp_path / "a"])


def test_an_adapter_is_written_once_and_only_of_what_was_adapted(tmp_path):
    model = trained(BOTH, 2)
    save_adapter(tmp_path / "a", model, BOTH)
    with pytest.raises(AdapterError, match="a exists already"):
        save_adapter(tmp_path / "a", model, BOTH)
    with pytest.raises(AdapterError, match="not of rank 5 and alpha 1"):
        save_adapter(tmp_path / "b", model, DECODER)
    with pytest.raises(AdapterError, match="carries no LoRA"):
        save_adapter(tmp_path / "b", base(), BOTH)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("method", "weights", "shares"),
    [
        ("average", None, (1 / 3, 1 / 3, 1 / 3)),
        ("average", (1.0, 2.0, 1.0), (0.25, 0.5, 0.25)),
        ("stack", None, (1.0, 1.0, 1.0)),
        ("stack", (0.5, 0.25, 2.0), (0.5, 0.25, 2.0)),
    ],
)
def test_adapters_of_different_ranks_and_parts_make_the_mean_or_the_sum_of_their_updates(
    tmp_path, method, weights, shares
):
    models = [trained(BOTH, 2), trained(DECODER, 3), trained(BOTH, 4)]
    folders = [tmp_path / str(number) for number in range(3)]
    for folder, model, lora in zip(folders, models, (BOTH, DECODER, BOTH), strict=True):
        save_adapter(folder, model, lora)
    merged, start = base(), dict(base().named_parameters())
    merge_adapters(merged, folders, method, weights)
    each = [changes(model) for model in models]
    largest = 0.0
    for name, value in merged.named_parameters():
        expected = sum(share * change[name] for share, change in zip(shares, each, strict=True))
        largest = max(largest, float(expected.abs().max()))
        torch.testing.assert_close(value - start[name], expected, atol=1e-5, rtol=0)
    assert largest > 0.05
    buffers = [dict(model.named_buffers()) for model in models]
    for name, value in merged.named_buffers():
        mean = sum(share * own[name] for share, own in zip(shares, buffers, strict=True)) / sum(shares)
        torch.testing.assert_close(value, mean.to(value.dtype), atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == start.keys() | dict(base().named_buffers()).keys()


def test_one_adapter_merged_is_the_recognizer_that_it_came_from(tmp_path):
    model = trained(BOTH, 2)
    save_adapter(tmp_path / "a", model, BOTH)
    for method in ("average", "stack"):
        merged = base()
        merge_adapters(merged, [tmp_path / "a"], method)
        torch.testing.assert_close(answers(merged), answers(model), atol=1e-4, rtol=0)


def test_the_mean_of_two_adapters_is_not_that_of_their_factors(tmp_path):
    """A·B and its twin of the opposite factors are one update; the means of their factors are nothing."""
    model = trained(BOTH, 2)
    expected = answers(model)
    save_adapter(tmp_path / "a", model, BOTH)
    with torch.no_grad():
        for update in updates(model).values():
            update.a.neg_()
            update.b.neg_()
    save_adapter(tmp_path / "twin", model, BOTH)
    merged = base()
    merge_adapters(merged, [tmp_path / "a", tmp_path / "twin"])
    torch.testing.assert_close(answers(merged), expected, atol=1e-4, rtol=0)


def test_weights_and_methods_that_mean_nothing_are_refused(tmp_path):
    save_adapter(tmp_path / "a", trained(BOTH, 2), BOTH)
    for folders, method, weights, said in (
        ([], "average", None, "no adapter was given"),
        ([tmp_path / "a"], "median", None, "by 'median': choose average or stack"),
        ([tmp_path / "a"], "stack", [1.0, 2.0], "1 adapters have 2 weights"),
        ([tmp_path / "a"], "stack", [0.0], "numbers above 0"),
        ([tmp_path / "a"], "average", [float("nan")], "numbers above 0"),
    ):
        with pytest.raises(AdapterError, match=said):
            merge_adapters(base(), folders, method, weights)


def test_adapters_become_part_of_a_bundle_that_reads_as_the_trained_recognizer(tmp_path):
    start = base()
    save_bundle(
        tmp_path / "bundle",
        name="numbers",
        recognizer=start,
        codec=CODEC,
        processor=ImageProcessor(height=16, width=24),
        decode=DecodeSettings(refine_iters=1),
        metrics={"val": {"n": 4, "exact": 0.5, "exact_ci": [0.1, 0.9], "cer": 0.3, "wer": 0.5}},
        provenance={"seed": "3"},
    )
    model = trained(BOTH, 2)
    save_adapter(tmp_path / "epoch-1", model, BOTH)
    merge_into_bundle(tmp_path / "bundle", [tmp_path / "epoch-1"] * 2, tmp_path / "out", "stack", [0.25, 0.75])
    manifest = read_manifest(tmp_path / "out")
    assert manifest.metrics == {}  # nobody has scored it
    assert manifest.provenance == {"seed": "3", "adapters": "stack of 0.25 × epoch-1, 0.75 × epoch-1"}
    assert (manifest.name, manifest.version, manifest.decode.refine_iters) == ("numbers", 0, 1)
    engine = load_engine(tmp_path / "out", torch.device("cpu"), "float32")
    torch.testing.assert_close(answers(engine.recognizer), answers(model), atol=1e-4, rtol=0)
    frame = encode_image(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8))
    assert engine.read([[frame]])[0].confidence > 0
    with pytest.raises(BundleError, match="out exists already"):
        merge_into_bundle(tmp_path / "bundle", [tmp_path / "epoch-1"], tmp_path / "out")
    with pytest.raises(AdapterError, match="was trained on other weights"):
        merge_into_bundle(tmp_path / "out", [tmp_path / "epoch-1"], tmp_path / "again")
    assert not Path(tmp_path / "again").exists()
