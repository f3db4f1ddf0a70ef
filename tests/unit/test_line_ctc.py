from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError
from torch import Tensor

from glyphrun.decoding.ctc import score
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.images import FrameStack, pad_stacks, stack_frames
from glyphrun.models.line_ctc import LineCTC, LineCTCSettings
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

TEXTS = ("at noon", "a", "ten minutes later", "too", "on time")
CHARSET = "".join(sorted(set("".join(TEXTS))))
CODEC = Codec(CHARSET, max(map(len, TEXTS)))
NANO = recognizer_settings("line-ctc-nano", {"dropout": 0.0})


def line(text: str) -> np.ndarray:
    """A rendered line as wide as its text, 30 pixels high."""
    font = ImageFont.load_default(22)
    image = Image.new("RGB", (int(font.getlength(text)) + 12, 30), "white")
    ImageDraw.Draw(image).text((6, 2), text, fill="black", font=font)
    return np.asarray(image)


def stacks(texts=TEXTS) -> list[FrameStack]:
    processor = processor_for(NANO)
    return [stack_frames([processor(line(text))]) for text in texts]


def batch(items: list[FrameStack], padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    frames, mask, sizes = (torch.from_numpy(array) for array in pad_stacks(items, padding))
    return processor_for(NANO).normalise(frames), mask, sizes


def fresh(**changes) -> LineCTC:
    torch.manual_seed(0)
    return LineCTC(recognizer_settings("line-ctc-nano", {"dropout": 0.0, **changes}), CODEC)


def train(model: LineCTC, steps: int) -> list[float]:
    model.train()
    frames, mask, sizes = batch(stacks())
    targets = CODEC.encode_batch(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min((step + 1) / 20, 1)
        loss = model.loss(model.encode(frames, mask, sizes), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def trained() -> LineCTC:
    model = fresh()
    train(model, 45)
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"search": "beam", "width": 8, "n_best": 4}])
def test_a_handful_of_lines_of_different_widths_is_learned_to_the_letter(trained, settings):
    items = stacks()
    assert len({item.shape[2] for item in items}) == len(items)
    engine = Engine(trained, CODEC, processor_for(NANO), DecodeSettings(**settings), precision="float32")
    found = engine.read_prepared(items)
    assert tuple(prediction.text for prediction in found) == TEXTS
    assert all(prediction.confidence > 0.5 for prediction in found)


def test_a_copy_in_bfloat16_reads_the_same(trained):
    engine = Engine(trained, CODEC, processor_for(NANO), precision="bfloat16")
    assert tuple(prediction.text for prediction in engine.read_prepared(stacks())) == TEXTS


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("padding", [0, 255])
def test_a_line_in_a_padded_batch_has_the_features_that_it_has_alone(scales, padding):
    model = fresh(scales=scales).eval()
    items = stacks()
    with torch.inference_mode():
        together = model.encode(*batch(items, padding))
        log_probs, lengths = model.emissions(together)
        for row, item in enumerate(items):
            frames, mask, _ = batch([item])
            alone = model.encode(frames, mask)
            assert alone.mask is None
            places = alone.tokens.shape[1]
            assert places == -(-item.shape[2] // 4) == int(lengths[row]) == int(together.mask[row].sum())
            torch.testing.assert_close(together.tokens[row, :places], alone.tokens[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(log_probs[row, :places], model.emissions(alone)[0][0], rtol=0, atol=1e-5)
            assert not together.tokens[row, places:].any()


def test_padding_changes_no_gradient():
    items, model = stacks(), fresh()
    frames, mask, sizes = batch(items)
    model.loss(model.encode(frames, mask, sizes), CODEC.encode_batch(TEXTS)).backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    characters = sum(map(len, TEXTS))
    for item, text in zip(items, TEXTS, strict=True):
        frames, mask, sizes = batch([item])
        alone = model.loss(model.encode(frames, mask, sizes), CODEC.encode_batch([text]))
        (alone * len(text) / characters).backward()
    for name, parameter in model.named_parameters():
        difference = float((parameter.grad - together[name]).abs().max() / together[name].abs().max())
        assert difference < 1e-4, name


def test_the_loss_is_what_the_labels_lack_in_probability_a_character():
    model = fresh().eval()
    memory = model.encode(*batch(stacks()))
    targets = CODEC.encode_batch(TEXTS)
    labels = [[tuple(CODEC.encode(text))] for text in TEXTS]
    log_probs = [found.log_prob for (found,) in score(*model.emissions(memory), labels)]
    assert float(model.loss(memory, targets).detach()) == pytest.approx(
        -sum(log_probs) / sum(map(len, TEXTS)), rel=1e-5
    )


def test_an_empty_label_is_one_more_thing_to_learn():
    model = fresh().eval()
    memory = model.encode(*batch(stacks(["a", "too"])))
    empty, both = model.loss(memory, CODEC.encode_batch(["", ""])), model.loss(memory, CODEC.encode_batch(["a", ""]))
    log_probs = [found.log_prob for (found,) in score(*model.emissions(memory), [[()], [()]])]
    assert float(empty.detach()) == pytest.approx(-sum(log_probs) / 2, rel=1e-5)
    assert torch.isfinite(both)


def test_the_same_seed_trains_the_same_weights():
    one, other = fresh(), fresh()
    assert train(one, 3) == train(other, 3)
    for (name, first), second in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("scales", [2, 3])
def test_several_scales_begin_as_the_deepest_alone_and_are_learned(scales):
    plain, fused = fresh(depth=3).eval(), fresh(depth=3, scales=scales).eval()
    frames = batch(stacks())
    torch.testing.assert_close(fused.encode(*frames).tokens, plain.encode(*frames).tokens)
    fused.loss(fused.encode(*frames), CODEC.encode_batch(TEXTS)).backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in fused.fusion.projections.parameters()) == 2 * (scales - 1)


def test_its_parts_are_all_of_it():
    model = fresh(scales=2)
    prefixes = [prefix for names in model.parts().values() for prefix in names]
    for name in model.state_dict():
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_the_published_size_is_five_to_eight_million_parameters():
    model = LineCTC(recognizer_settings("line-ctc-small"), Codec("".join(map(chr, range(0x4E00, 0x4E00 + 136))), 110))
    assert 5e6 < sum(parameter.numel() for parameter in model.parameters()) < 8e6


def test_frames_of_a_tracklet_are_lines_of_their_own():
    model = fresh().eval()
    processor = processor_for(NANO)
    pair = stack_frames([processor(line("too")), processor(line("on time"))])
    memory = model.encode(*batch([pair, stacks(["a"])[0]]))
    alone = model.encode(*batch(stacks(["too", "on time", "a"])))
    torch.testing.assert_close(memory.tokens, alone.tokens)
    assert memory.frame_mask.tolist() == [[True]] * 3


def test_a_label_that_does_not_fit_its_line_is_named_with_the_width_that_it_needs():
    model = fresh()
    frames, mask = torch.zeros(3, 1, 3, 48, 16), torch.ones(3, 1, dtype=torch.bool)  # four places each
    # Two equal neighbours need a blank between them, so «too» needs four places and «mmmm» seven.
    memory = model.encode(frames, mask)
    assert torch.isfinite(model.loss(memory, CODEC.encode_batch(["too", "tot", "at n"])))
    with pytest.raises(ValueError, match=r"row 1 needs a line at least 25 pixels wide and has about 16; row 2 .* 17 "):
        model.loss(memory, CODEC.encode_batch(["too", "nnnn", "at no"]))
    wide_enough = model.encode(torch.zeros(1, 1, 3, 48, 25), mask[:1])
    assert torch.isfinite(model.loss(wide_enough, CODEC.encode_batch(["nnnn"])))
    with pytest.raises(ValueError, match="row 0 needs a line at least 25"):
        model.loss(model.encode(torch.zeros(1, 1, 3, 48, 24), mask[:1]), CODEC.encode_batch(["nnnn"]))


def test_frames_that_no_line_processor_made_are_refused():
    model = fresh()
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="48 pixels high, and these are 32"):
        model.encode(torch.zeros(1, 1, 3, 32, 64), mask)
    with pytest.raises(ValueError, match=r"pictures \[80\] pixels wide do not fit frames 64 pixels wide"):
        model.encode(torch.zeros(1, 1, 3, 48, 64), mask, torch.tensor([[[48, 80]]]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 98}, "width 98 must be even and a multiple of heads 4"),
        ({"height": 50}, "multiple of 8"),
        ({"scales": 3}, "scales 3 cannot be taken from an encoder of 2 blocks"),
        ({"stem": (16, 0, 48)}, "each must be at least 1"),
        ({"stride": 4}, "stride"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        recognizer_settings("line-ctc-nano", changes)


def test_subwords_are_refused():
    class Subwords:
        charset, begin, end, pad, num_tokens, max_length = "", 1, 2, 3, 100, 20

    with pytest.raises(ValueError, match="reads characters: give it the codec of a charset"):
        LineCTC(LineCTCSettings(), Subwords())


def test_searches_that_it_has_no_use_for_are_refused():
    model = fresh().eval()
    memory = model.encode(*batch(stacks(["a"])))
    with pytest.raises(TypeError, match="LineCTC reads all places at once already"):
        search(model, memory, DecodeSettings(search="non-autoregressive"))


def test_a_line_too_narrow_for_its_label_is_refused_by_name_before_training():
    model = build(recognizer_settings("line-ctc-nano"), Codec(DIGITS, 9))
    model.check([(48, 13), (48, 100)], [5, 5], ["a", "b"])
    with pytest.raises(ValueError, match="b has a label of 4 characters and is 12 pixels wide, where it needs 13"):
        model.check([(48, 13), (48, 12)], [5, 5], ["a", "b"])
