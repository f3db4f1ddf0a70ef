from __future__ import annotations

import argparse
import io
import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.torch_files import WeightsError
from glyphrun.models.transfer import Transferred, transfer, transfer_table
from glyphrun.models.weights import PUBLISHED_CHARSET, load_weights
from glyphrun.text import Codec
from glyphrun.training.start import StartSettings, start_recognizer

DIGITS = string.digits


def parseq(charset: str, max_length: int, seed: int = 0, **changes: Any) -> PARSeq:
    """A small PARSeq at the published image and patch size, whose answers depend on what it sees and was told."""
    torch.manual_seed(seed)
    sizes = {"width": 24, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
    encoder = EncoderSettings(**{**sizes, **changes.pop("encoder", {})})
    settings = PARSeqSettings(encoder=encoder, **{"decoder_heads": 2, "decoder_mlp_ratio": 2.0, **changes})
    model = PARSeq(settings, len(charset), max_length).eval()
    with torch.no_grad():
        model.encoder.pos_embed.normal_(std=0.5)
        model.pos_queries.mul_(40)
        model.text_embed.embedding.weight.mul_(20)
        model.head.weight.mul_(4)
        model.head.bias.normal_()
    return model


@torch.no_grad()
def spoken(model: PARSeq, texts: list[list[int]], images: Tensor) -> Tensor:
    """Log-probabilities (B, P, V) of each next token after the texts' first tokens, one step at a time, and of refining."""
    memory = model.encode(images[:, None], torch.ones(len(images), 1, dtype=torch.bool))
    tokens = torch.tensor([[model.begin, *text] for text in texts])
    state, steps = model.start(memory, 1), []
    for position in range(tokens.shape[1]):
        log_probs, state = model.step(state, tokens[:, position])
        steps.append(log_probs)
    return torch.stack(steps, dim=1)


@pytest.fixture(scope="module")
def published() -> PARSeq:
    return parseq(PUBLISHED_CHARSET, 25)


def actions(rows: list[Transferred]) -> dict[str, str]:
    return {row.name: row.action for row in rows}


def other(rows: list[Transferred]) -> dict[str, tuple[str, str]]:
    """What was not kept as it was."""
    return {row.name: (row.action, row.note) for row in rows if row.action != "kept" or row.note}


def test_a_digit_reader_answers_as_the_94_character_one_restricted_to_digits(published):
    """Token d + 1 is the digit d in both charsets, so the same tokens say the same."""
    digits = parseq(DIGITS, 2, seed=1)
    rows = transfer(digits, published.state_dict(), source_charset=PUBLISHED_CHARSET, charset=DIGITS)
    images = torch.randn(3, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    texts = [[3, 4], [10, 1], [7, 7]]
    expected = spoken(published, texts, images)[..., :11].log_softmax(-1)
    torch.testing.assert_close(spoken(digits, texts, images), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.5  # it is no uniform answer
    with torch.no_grad():
        memories = [model.encode(images[:, None], torch.ones(3, 1, dtype=torch.bool)) for model in (digits, published)]
        found, all_positions = (
            model.parallel(memory) for model, memory in zip((digits, published), memories, strict=True)
        )
        torch.testing.assert_close(found, all_positions[:, :3, :11].log_softmax(-1), atol=1e-5, rtol=0)
    assert other(rows) == {
        "pos_queries": ("kept", "the first 3 of 26 positions"),
        "head.weight": ("kept", "11 of 95 rows, by character"),
        "head.bias": ("kept", "11 of 95 rows, by character"),
        "text_embed.embedding.weight": ("kept", "13 of 97 rows, by character"),
    }


@pytest.mark.parametrize("kind", ["pt", "safetensors", "lightning", "module", "compiled"])
def test_weights_of_every_format_give_the_same_recognizer(tmp_path, published, kind):
    state = published.state_dict()
    path = tmp_path / f"x.{'safetensors' if kind == 'safetensors' else 'ckpt' if kind == 'lightning' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "lightning":
        hyper = {"hyper_parameters": argparse.Namespace(charset=PUBLISHED_CHARSET), "epoch": 3, "callbacks": {}}
        torch.save({**hyper, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        prefix = {"pt": "", "module": "module.", "compiled": "module._orig_mod."}[kind]
        torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)
    digits, expected = parseq(DIGITS, 2, seed=1), parseq(DIGITS, 2, seed=2)
    rows = transfer(digits, load_weights(str(path)), source_charset=None, charset=DIGITS)
    assert rows == transfer(expected, state, source_charset=PUBLISHED_CHARSET, charset=DIGITS)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(digits.state_dict()[name], tensor), name


def test_a_compiled_recognizer_takes_weights_under_its_plain_names(published):
    compiled = parseq(PUBLISHED_CHARSET, 25, seed=1)
    compiled.encoder = torch.compile(compiled.encoder)
    rows = transfer(compiled, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET)
    assert other(rows) == {}
    assert all(torch.equal(one, two) for one, two in zip(compiled.parameters(), published.parameters(), strict=True))


def test_rows_go_by_character_in_any_order(published):
    charset = "zA9!a"
    model = parseq(charset, 25, seed=1)
    transfer(model, published.state_dict(), source_charset=None, charset=charset)
    ids = [0, *(1 + PUBLISHED_CHARSET.index(character) for character in charset)]
    assert torch.equal(model.head.weight, published.head.weight[ids])
    assert torch.equal(model.head.bias, published.head.bias[ids])
    assert torch.equal(model.text_embed.embedding.weight, published.text_embed.embedding.weight[[*ids, 95, 96]])


def test_36_characters_are_digits_and_lower_case(published):
    small = parseq(PUBLISHED_CHARSET[:36], 25, seed=1)
    transfer(small, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET[:36])
    model = parseq("b7", 2, seed=2)
    transfer(model, small.state_dict(), source_charset=None, charset="b7")
    assert torch.equal(model.head.weight, published.head.weight[[0, 12, 8]])


def test_a_new_character_is_refused_until_it_is_allowed_and_then_only_its_row_is_new(published):
    charset = "0é"
    model = parseq(charset, 2, seed=1)
    built = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"head\.weight \(1 new of 3 rows: 'é' U\+00E9\).*mismatch «extend» allows it"
    ):
        transfer(model, published.state_dict(), source_charset=None, charset=charset)
    assert all(torch.equal(tensor, built[name]) for name, tensor in model.state_dict().items())

    rows = transfer(model, published.state_dict(), source_charset=None, charset=charset, mismatch="extend")
    assert actions(rows)["head.weight"] == actions(rows)["text_embed.embedding.weight"] == "resized"
    assert torch.equal(model.head.weight[:2], published.head.weight[:2])
    assert torch.equal(model.head.weight[2], built["head.weight"][2])
    embedding = model.text_embed.embedding.weight
    assert torch.equal(embedding[[0, 1, 3, 4]], published.text_embed.embedding.weight[[0, 1, 95, 96]])
    assert torch.equal(embedding[2], built["text_embed.embedding.weight"][2])


def test_replacing_makes_what_does_not_fit_new_as_a_whole_and_keeps_the_encoder(published):
    charset = "0é"
    model = parseq(charset, 30, seed=1, encoder={"image": (32, 64)})
    built = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = transfer(model, published.state_dict(), source_charset=None, charset=charset, mismatch="replace")
    new = {"head.weight", "head.bias", "text_embed.embedding.weight", "pos_queries"}
    assert {name for name, action in actions(rows).items() if action == "new"} == new
    assert all(torch.equal(model.state_dict()[name], built[name]) for name in new)
    assert other(rows)["pos_queries"] == ("new", "all of it: positions 27 to 31 are new")
    assert actions(rows)["encoder.pos_embed"] == "resized"
    assert torch.equal(model.decoder.norm.weight, published.decoder.norm.weight)


def test_more_positions_are_new_after_those_that_there_were(published):
    model = parseq(PUBLISHED_CHARSET, 40, seed=1)
    built = model.pos_queries.clone()
    with pytest.raises(WeightsError, match=r"pos_queries \(positions 27 to 41 are new\).*extend"):
        transfer(model, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET)
    rows = transfer(model, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET, mismatch="extend")
    assert other(rows) == {"pos_queries": ("resized", "positions 27 to 41 are new")}
    assert torch.equal(model.pos_queries[:, :26], published.pos_queries)
    assert torch.equal(model.pos_queries[:, 26:], built[:, 26:])


def test_position_embeddings_follow_the_picture_to_another_size(published):
    """A wave along the columns is sampled at the columns of the wider picture, and rows do not mix with columns."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.arange(16) + 0.5, indexing="ij")
    source = dict(published.state_dict())
    source["encoder.pos_embed"] = torch.zeros(1, 128, 24)
    source["encoder.pos_embed"][0, :, 0] = torch.sin(columns / 16 * torch.pi).flatten()
    source["encoder.pos_embed"][0, :, 1] = rows.flatten()
    model = parseq(PUBLISHED_CHARSET, 25, seed=1, encoder={"image": (32, 256)})
    with pytest.raises(WeightsError, match=r"encoder\.pos_embed \(interpolated from 8×16 to 8×32 places\).*extend"):
        transfer(model, source, source_charset=None, charset=PUBLISHED_CHARSET)
    found = transfer(model, source, source_charset=None, charset=PUBLISHED_CHARSET, mismatch="extend")
    assert other(found) == {"encoder.pos_embed": ("resized", "interpolated from 8×16 to 8×32 places")}
    grid = model.encoder.pos_embed.detach().reshape(8, 32, 24)
    wave = torch.sin((torch.arange(32) + 0.5) / 32 * torch.pi)
    torch.testing.assert_close(grid[:, 4:-4, 0], wave.expand(8, 32)[:, 4:-4], atol=0.002, rtol=0)
    torch.testing.assert_close(grid[:, :, 1], torch.linspace(0, 1, 8)[:, None].expand(8, 32), atol=1e-5, rtol=0)


def test_as_many_places_in_another_arrangement_are_not_taken_as_they_are(published):
    """64×64 pixels in patches of 4×8 are 16×8 places, 32×128 are 8×16: 128 both."""
    model = parseq(PUBLISHED_CHARSET, 25, seed=1, encoder={"image": (64, 64)})
    arguments = {"source_charset": None, "charset": PUBLISHED_CHARSET, "mismatch": "extend"}
    with pytest.raises(WeightsError, match=r"128 places of 4×8 pixels may be rows × columns of 8×16 or 16×8: give"):
        transfer(model, published.state_dict(), **arguments)
    rows = transfer(model, published.state_dict(), source_image=(32, 128), **arguments)
    assert other(rows) == {"encoder.pos_embed": ("resized", "interpolated from 8×16 to 16×8 places")}
    assert other(transfer(model, published.state_dict(), source_image=(64, 64), **arguments)) == {}
    assert torch.equal(model.encoder.pos_embed, published.encoder.pos_embed)
    with pytest.raises(WeightsError, match=r"128 places of 4×8 pixels do not fit images of 40×40: give the height"):
        transfer(model, published.state_dict(), source_image=(40, 40), **arguments)


def test_patches_of_twice_the_size_see_an_enlarged_picture_as_before(published):
    model = parseq(PUBLISHED_CHARSET, 25, seed=1, encoder={"image": (64, 256), "patch": (8, 16)})
    with pytest.raises(WeightsError, match=r"proj\.weight \(resampled from 4×8 to 8×16 pixels\).*extend"):
        transfer(model, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET)
    rows = transfer(model, published.state_dict(), source_charset=None, charset=PUBLISHED_CHARSET, mismatch="extend")
    assert other(rows) == {"encoder.patch_embed.proj.weight": ("resized", "resampled from 4×8 to 8×16 pixels")}
    flat = torch.linspace(-1, 1, 6).view(2, 3, 1, 1)  # a picture of one colour is the same at every size
    with torch.no_grad():
        small = published.encoder.patch_embed(flat.expand(2, 3, 32, 128))
        large = model.encoder.patch_embed(flat.expand(2, 3, 64, 256))
    torch.testing.assert_close(large, small, atol=1e-4, rtol=0)
    assert small.std() > 0.05


def test_square_weights_of_16_pixel_patches_go_into_a_recognizer_of_lines():
    """What parseq-small-patch16-224 needs to read 32×128 pictures in patches of 4×8."""
    square = parseq(DIGITS, 2, encoder={"image": (224, 224), "patch": (16, 16)})
    model = parseq(DIGITS, 2, seed=1)
    rows = transfer(model, square.state_dict(), source_charset=DIGITS, charset=DIGITS, mismatch="extend")
    assert other(rows) == {
        "encoder.pos_embed": ("resized", "interpolated from 14×14 to 8×16 places"),
        "encoder.patch_embed.proj.weight": ("resized", "resampled from 16×16 to 4×8 pixels"),
    }


def test_a_fusion_that_the_weights_do_not_have_is_new_and_has_to_be_allowed(published):
    model = parseq(DIGITS, 2, seed=1, fusion="attention")
    with pytest.raises(WeightsError, match=r"fusion\.legibility\.weight \(not in the weights\).*«extend» allows it"):
        transfer(model, published.state_dict(), source_charset=None, charset=DIGITS)
    rows = transfer(model, published.state_dict(), source_charset=None, charset=DIGITS, mismatch="extend")
    assert {row.name for row in rows if row.action == "new"} == {"fusion.legibility.weight", "fusion.legibility.bias"}


def test_what_the_recognizer_has_no_use_for_is_dropped_by_name(published):
    source = {**published.state_dict(), "criterion.weight": torch.ones(3)}
    rows = transfer(parseq(DIGITS, 2, seed=1), source, source_charset=None, charset=DIGITS)
    assert rows[-1] == Transferred("criterion.weight", "dropped", (3,), None)
    assert [row.name for row in rows if row.action == "dropped"] == ["criterion.weight"]


def test_an_encoder_of_another_size_is_refused_whatever_is_allowed(published):
    model = parseq(DIGITS, 2, seed=1, encoder={"width": 32})
    for mismatch in ("fail", "extend", "replace"):
        with pytest.raises(
            WeightsError, match=r"encoder\..* \(.*24.* in the weights, .*32.* here\).*no option allows this"
        ):
            transfer(model, published.state_dict(), source_charset=None, charset=DIGITS, mismatch=mismatch)


def test_a_decoder_of_another_size_can_only_be_replaced(published):
    model = parseq(DIGITS, 2, seed=1, decoder_mlp_ratio=3.0)
    for mismatch in ("fail", "extend"):
        with pytest.raises(
            WeightsError, match=r"linear1\.weight \(48×24 in the weights, 72×24 here\).*«replace» allows it"
        ):
            transfer(model, published.state_dict(), source_charset=None, charset=DIGITS, mismatch=mismatch)
    rows = transfer(model, published.state_dict(), source_charset=None, charset=DIGITS, mismatch="replace")
    assert {row.name for row in rows if row.action == "new"} == {
        f"decoder.layers.0.{name}" for name in ("linear1.weight", "linear1.bias", "linear2.weight")
    }


def test_an_encoder_goes_to_another_kind_of_recognizer(published):
    torch.manual_seed(1)
    settings = QueryDigitsSettings(encoder=published.settings.encoder, decoder_heads=2, fusion="none")
    model = QueryDigits(settings)
    rows = transfer(model, published.state_dict(), source_charset=None, charset=DIGITS, mismatch="extend")
    encoder = [row for row in rows if row.name.startswith("encoder.")]
    assert encoder and all(row.action == "kept" for row in encoder)
    assert torch.equal(model.encoder.norm.weight, published.encoder.norm.weight)
    assert {"digit_head.weight", "length_query"} <= {row.name for row in rows if row.action == "new"}
    assert {"pos_queries", "head.weight"} <= {row.name for row in rows if row.action == "dropped"}


def test_half_precision_weights_are_widened_and_integers_refused(published):
    model = parseq(PUBLISHED_CHARSET, 25, seed=1)
    halves = {name: tensor.bfloat16() for name, tensor in published.state_dict().items()}
    transfer(model, halves, source_charset=None, charset=PUBLISHED_CHARSET)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, halves["head.weight"].float())
    integers = {**halves, "head.weight": torch.ones(95, 24, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"head\.weight \(torch\.int8 in the weights, torch\.float32 here\)"):
        transfer(model, integers, source_charset=None, charset=PUBLISHED_CHARSET, mismatch="extend")


@pytest.mark.parametrize(
    ("source_charset", "charset", "sentence"),
    [
        (
            DIGITS,
            DIGITS,
            r"head\.weight of the weights has rows for 94 characters, and the charset given for them has 10",
        ),
        (None, DIGITS + "a", r"head\.weight of the recognizer has rows for 10 characters, .* given for them has 11"),
    ],
)
def test_a_charset_of_another_size_than_the_rows_is_refused(published, source_charset, charset, sentence):
    with pytest.raises(WeightsError, match=sentence):
        transfer(parseq(DIGITS, 2), published.state_dict(), source_charset=source_charset, charset=charset)


def test_an_unknown_number_of_characters_is_not_guessed():
    with pytest.raises(
        WeightsError, match="rows for 4 characters, and no published charset has as many: give .* as weights_charset"
    ):
        transfer(parseq("01", 2), parseq("abcd", 2).state_dict(), source_charset=None, charset="01")


def test_a_file_that_nothing_is_known_of_starts_a_training_once_its_charset_is_told(tmp_path):
    path, settings, codec = tmp_path / "letters.safetensors", parseq("01", 2).settings, Codec("bd", 2)
    source = parseq("abcd", 2)
    save_file(source.state_dict(), path)
    with pytest.raises(WeightsError, match="as weights_charset"):
        start_recognizer(settings, codec, StartSettings(weights=str(path)), seed=0)
    start = StartSettings(weights=str(path), weights_charset="abcd", weights_image=(32, 128))
    recognizer, moved = start_recognizer(settings, codec, start, seed=0)
    assert torch.equal(recognizer.get_parameter("head.weight"), source.head.weight[[0, 2, 4]])
    assert {row.action for row in moved} == {"kept"}


def test_weights_of_another_kind_are_refused_with_names_of_both():
    with pytest.raises(WeightsError, match=r"another kind .* \(conv1\.weight\) .* \(pos_queries, .* and \d+ more\)"):
        transfer(parseq(DIGITS, 2), {"conv1.weight": torch.ones(3)}, source_charset=None, charset=DIGITS)


def test_the_table_counts_all_and_names_what_was_not_kept_as_it_was(published):
    source = {**published.state_dict(), "criterion.weight": torch.ones(3)}
    model = parseq("0é[/]", 2, seed=1, fusion="attention")
    rows = transfer(model, source, source_charset=None, charset="0é[/]", mismatch="extend")
    page = io.StringIO()
    Console(file=page, width=150).print(transfer_table(rows))
    kept = sum(row.action == "kept" for row in rows)
    assert len(rows) - kept == 6
    assert f"weights: {kept} kept, 3 resized, 2 new, 1 dropped" in page.getvalue()
    table = {line.split("│")[1].strip(): line for line in page.getvalue().splitlines() if "│" in line}
    for name, words in {
        "head.weight": ("resized", "95×24", "6×24", "1 new of 6 rows: 'é' U+00E9"),
        "fusion.legibility.weight": ("new", "not in the weights"),
        "criterion.weight": ("dropped", "3"),
        "pos_queries": ("kept", "the first 3 of 26 positions"),
    }.items():
        assert all(word in table[name] for word in words), table[name]
    assert "encoder.norm.weight" not in table


@torch.no_grad()
def test_the_published_toy_gives_a_digit_reader_its_digit_rows_and_its_answers(shared: Path):
    card = json.loads((shared / "oracles" / "parseq_toy.json").read_text())["toy94"]
    oracle = load_file(shared / "oracles" / "parseq_toy94.safetensors")
    state = {name.removeprefix("state."): tensor for name, tensor in oracle.items() if name.startswith("state.")}
    encoder = EncoderSettings(width=card["embed_dim"], depth=card["enc_depth"], heads=card["enc_num_heads"])
    settings = PARSeqSettings(encoder=encoder, decoder_heads=card["dec_num_heads"])
    model = PARSeq(settings, 10, 2).eval()
    rows = transfer(model, state, source_charset=card["charset"], charset=DIGITS)
    assert {row.action for row in rows} == {"kept"}
    assert torch.equal(model.head.weight, state["head.weight"][:11])
    assert torch.equal(model.head.bias, state["head.bias"][:11])
    assert torch.equal(model.text_embed.embedding.weight[:11], state["text_embed.embedding.weight"][:11])
    assert torch.equal(model.text_embed.embedding.weight[11:], state["text_embed.embedding.weight"][95:])
    assert torch.equal(model.pos_queries, state["pos_queries"][:, :3])
    memory = model.encode(oracle["images"][:, None], torch.ones(6, 1, dtype=torch.bool))
    torch.testing.assert_close(memory.tokens, oracle["memory"], atol=1e-4, rtol=0)
    expected = oracle["logits.nar.refine0"][:, :3, :11].log_softmax(-1)
    torch.testing.assert_close(model.parallel(memory), expected, atol=1e-4, rtol=0)
    first, _ = model.step(model.start(memory, 1), torch.full((6,), model.begin))
    torch.testing.assert_close(first, oracle["logits.ar.refine0"][:, 0, :11].log_softmax(-1), atol=1e-4, rtol=0)
