"""An engine reads each batch with the adapter that is asked for, as the merged bundle does, and is then what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from glyphrun.adapter_shelf import AdapterShelf, shelve
from glyphrun.adapters import AdapterError, merge_into_bundle
from glyphrun.bundle import StoredPrecision, load_engine, read_manifest
from glyphrun.engine import Engine
from glyphrun.ensembled import make_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun.models.lora import LoraSettings, apply_lora, updates
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.worn import Changes, Wardrobe
from glyphrun.shelved import Shelved
from lora_recognizers import adapt
from serving import picture
from tiny_bundles import save_tiny_bundle
from tiny_vlm import FAMILIES, save_tiny, tiny_codec, tiny_vlm

LARGE = 2**24
SMALL = {"encoder": {"width": 16, "depth": 1, "heads": 2}, "decoder_heads": 2, "fusion": "attention"}
# Ranks, parts and what is trained in full differ.
NARROW = LoraSettings(rank=2, alpha=8.0, unfrozen=("norms",))
WIDE = LoraSettings(rank=5, alpha=5.0, targets=("decoder",), unfrozen=("head", "embeddings"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("shelf") / "base", "parseq-nano", SMALL, vote_floor=0.0, n_best=3)


@pytest.fixture(scope="module")
def folders(bundle: Path) -> dict[str, Path]:
    return {
        name: adapt(bundle, bundle.with_name(name), lora, seed=seed)
        for seed, (name, lora) in enumerate({"narrow": NARROW, "wide": WIDE, "third": NARROW}.items())
    }


@pytest.fixture(scope="module")
def shelved(bundle: Path, folders: dict[str, Path]) -> dict[str, Shelved]:
    return shelve(bundle, read_manifest(bundle), folders, LARGE)


def readings(engine: Engine, shelf: AdapterShelf | None = None, name: str = "") -> list[tuple[str, float, list[float]]]:
    """What is read in a still image and in a tracklet, every log-probability included."""
    items = [[picture(1)], [picture(seed) for seed in (2, 3, 4)]]
    if shelf is None:
        found = engine.read(items, explain=True)
    else:
        with shelf.worn(name):
            found = engine.read(items, explain=True)
    return [(one.text, one.n_best[0].log_prob, [*one.n_best[0].token_log_probs]) for one in found]


def assert_same(found: list, wanted: list) -> None:
    for (text, log_prob, tokens), (wanted_text, wanted_log_prob, wanted_tokens) in zip(found, wanted, strict=True):
        assert text == wanted_text
        assert [log_prob, *tokens] == pytest.approx([wanted_log_prob, *wanted_tokens], abs=1e-4)


def test_what_is_read_with_an_adapter_is_what_the_merged_bundle_reads_and_the_base_stays_bit_for_bit(
    bundle: Path, folders: dict[str, Path], shelved: dict[str, Shelved], tmp_path: Path
) -> None:
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    base, before = readings(engine), {name: value.clone() for name, value in engine.recognizer.state_dict().items()}
    places = {name: value.data_ptr() for name, value in engine.recognizer.state_dict().items()}
    shelf = AdapterShelf(engine, shelved, LARGE)
    texts = {tuple(text for text, *_ in base)}
    for name, folder in folders.items():
        merge_into_bundle(bundle, [folder], tmp_path / name)
        merged = readings(load_engine(tmp_path / name, torch.device("cpu"), "float32"))
        worn = readings(engine, shelf, name)
        assert_same(worn, merged)
        texts.add(tuple(text for text, *_ in worn))
        assert readings(engine) == base
    assert len(texts) == 4, "the base and each adapter must be told apart by what they read"
    after = engine.recognizer.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert {name: value.data_ptr() for name, value in after.items()} == places


def test_a_reading_that_fails_leaves_nothing_of_its_adapter_on(bundle: Path, shelved: dict[str, Shelved]) -> None:
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    base, shelf = readings(engine), AdapterShelf(engine, shelved, LARGE)
    for name in shelved:
        with pytest.raises(ZeroDivisionError), shelf.worn(name):
            1 / 0  # noqa: B018
        assert readings(engine) == base


@pytest.mark.parametrize("name", ["query-digits-nano", "line-ctc-nano", "trocr-nano"])
def test_recognizers_of_other_kinds_wear_adapters_too(name: str, tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "base", name, vote_floor=0.0)
    folder = adapt(bundle, tmp_path / "adapter", LoraSettings(rank=3), seed=3)
    merge_into_bundle(bundle, [folder], tmp_path / "merged")
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    base = readings(engine)
    shelf = AdapterShelf(engine, shelve(bundle, read_manifest(bundle), {"it": folder}, LARGE), LARGE)
    worn = readings(engine, shelf, "it")
    assert_same(worn, readings(load_engine(tmp_path / "merged", torch.device("cpu"), "float32")))
    assert worn != base == readings(engine)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_vision_language_models_wear_updates_as_they_were_trained_with(name: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", name)
    plain, trained = (tiny_vlm(tmp_path / "model") for _ in range(2))
    apply_lora(trained, LoraSettings(rank=3, targets=("vision", "projector", "decoder")))
    for update in updates(trained).values():
        update.b.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    changes = Changes({weight: (one.a, one.scaling * one.b) for weight, one in updates(trained).items()})
    frames, mask = torch.rand(2, 1, 3, 56, 84), torch.ones(2, 1, dtype=torch.bool)
    targets = tiny_codec(tmp_path / "model").encode_batch(["12", "3"])

    def loss(of: Recognizer) -> float:
        return of.loss(of.encode(frames, mask), targets).item()

    before = loss(plain)
    with Wardrobe(plain).worn(changes):
        assert loss(plain) == pytest.approx(loss(trained), abs=1e-4)
    assert loss(plain) == before != pytest.approx(loss(trained), abs=1e-3)


def test_features_are_the_adapters_own_and_half_precision_takes_half_the_bytes(
    bundle: Path, shelved: dict[str, Shelved]
) -> None:
    sizes = []
    for precision in ("float32", "bfloat16"):
        engine = load_engine(bundle, torch.device("cpu"), precision)
        shelf, item = AdapterShelf(engine, shelved, LARGE), [engine.prepare([picture(1)], name="x")]
        base = engine.embed(item)[0].pooled
        with shelf.worn("narrow"):
            assert abs(engine.embed(item)[0].pooled - base).max() > 1e-3
        assert (engine.embed(item)[0].pooled == base).all()
        sizes += shelf.loaded.values()
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.01) and sizes[0] <= shelved["narrow"].size


def test_adapters_are_loaded_when_asked_for_and_the_one_not_used_for_longest_makes_room(
    bundle: Path, shelved: dict[str, Shelved]
) -> None:
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    most = max(shelved["narrow"].size + shelved["wide"].size, 2 * shelved["narrow"].size)
    shelf = AdapterShelf(engine, shelved, most)
    assert shelf.loaded == {}
    loads = []
    for name in ("narrow", "wide", "narrow", "third", "narrow", "wide", "third"):
        with shelf.worn(name) as spent:
            assert sum(shelf.loaded.values()) <= most
            assert [*shelf.loaded][-1] == name
        loads.append(spent > 0)
    assert loads == [True, True, False, True, False, True, True]
    whole = AdapterShelf(engine, shelved, LARGE)
    wanted = {name: readings(engine, whole, name) for name in shelved}
    for name in ("narrow", "wide", "third", "wide", "narrow"):
        assert readings(engine, shelf, name) == wanted[name]


def test_what_cannot_be_served_with_its_base_is_refused_at_start(
    bundle: Path, folders: dict[str, Path], shelved: dict[str, Shelved], tmp_path: Path
) -> None:
    manifest = read_manifest(bundle)
    assert shelve(bundle, manifest, {}, 0) == {}
    size = shelved["wide"].size
    with pytest.raises(AdapterError, match=r"the adapter wide in .*wide takes 0\.\d+ MiB.*: allow more"):
        shelve(bundle, manifest, {"wide": folders["wide"]}, size - 1)
    with pytest.raises(AdapterError, match="nothing is no adapter"):
        shelve(bundle, manifest, {"wide": tmp_path / "nothing"}, LARGE)
    other = save_tiny_bundle(tmp_path / "other", "parseq-nano", SMALL, seed=9)
    with pytest.raises(AdapterError, match="wide was trained on other weights than this parseq has"):
        shelve(other, read_manifest(other), {"wide": folders["wide"]}, LARGE)
    stored_in_int8 = manifest.model_copy(update={"precision": StoredPrecision(method="int8")})
    with pytest.raises(AdapterError, match="base is stored in int8"):
        shelve(bundle, stored_in_int8, folders, LARGE)
    make_ensemble({"one": bundle, "other": other}, tmp_path / "both", EnsembleSettings())
    with pytest.raises(AdapterError, match="both is an ensemble.*serve a member alone"):
        shelve(tmp_path / "both", read_manifest(tmp_path / "both"), folders, LARGE)


def test_an_adapter_that_was_changed_after_the_start_is_not_read_with(
    bundle: Path, shelved: dict[str, Shelved], tmp_path: Path
) -> None:
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    base = readings(engine)
    folder = adapt(bundle, tmp_path / "adapter", NARROW, seed=5)
    found = shelve(bundle, read_manifest(bundle), {"it": folder}, LARGE)
    manifest = json.loads((folder / "adapter.json").read_text())
    manifest["lora"]["alpha"] = 80.0
    (folder / "adapter.json").write_text(json.dumps(manifest))
    shelf = AdapterShelf(engine, found, LARGE)
    with pytest.raises(AdapterError, match="is another adapter than when the server started"), shelf.worn("it"):
        pass
    assert shelf.loaded == {} and readings(engine) == base
