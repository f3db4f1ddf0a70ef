from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glyphrun.decoding.beam import beam
from glyphrun.decoding.greedy import greedy
from glyphrun.models.recognizer import Memory
from glyphrun.models.vlm import VLM, VLMSettings
from glyphrun.models.vlm_patches import STEP, patchify
from glyphrun.text import DIGITS, Codec
from tiny_vlm import FAMILIES, save_tiny, tiny_codec, tiny_vlm

SIZES = [(28, 140), (84, 56), (28, 28), (56, 112)]
TEXTS = ["12", "three", "a b c", "x"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return tiny_vlm(folder).requires_grad_(False)


@pytest.fixture(scope="module")
def original(folder: Path):
    """The same weights as transformers runs them."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Four pictures (3, H, W) of the SIZES."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, height, width, generator=generator) for height, width in SIZES]


def batch(pictures: list[Tensor], noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, 1, 3, H, W) padded with noise, their mask and sizes."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    frames = torch.full((len(pictures), 1, 3, height, width), noise)
    for frame, picture in zip(frames, pictures, strict=True):
        frame[0, :, : picture.shape[1], : picture.shape[2]] = picture
    sizes = torch.tensor([[picture.shape[1:]] for picture in pictures])
    return frames, torch.ones(len(pictures), 1, dtype=torch.bool), sizes


def encoded(vlm: VLM, pictures: list[Tensor], noise: float = 0.0) -> Memory:
    frames, mask, sizes = batch(pictures, noise)
    return vlm.encode(frames, mask, sizes)


def published_inputs(vlm: VLM, picture: Tensor) -> dict[str, Tensor]:
    """One picture as the published model takes it: our token ids, its own positions and features."""
    pixels, grids = patchify([picture])
    sequence = vlm.collate([(picture.shape[1] // STEP, picture.shape[2] // STEP)])
    return {
        "input_ids": sequence.tokens,
        "attention_mask": sequence.mask.long(),
        "mm_token_type_ids": sequence.pictures.int(),
        "pixel_values": pixels,
        "image_grid_thw": grids,
    }


def test_image_tokens_are_those_of_the_published_tower_whatever_surrounds_the_picture(vlm, original, pictures):
    memory = encoded(vlm, pictures, noise=9.0)
    assert memory.mask is not None
    assert memory.mask.sum(1).tolist() == [5, 6, 1, 8]
    for tokens, mask, picture in zip(memory.tokens, memory.mask, pictures, strict=True):
        pixels, grids = patchify([picture])
        expected = original.model.get_image_features(pixels, grids).pooler_output[0]
        torch.testing.assert_close(tokens[mask], expected, atol=1e-4, rtol=0)


def test_every_existing_frame_of_a_tracklet_is_an_item_of_its_own(vlm, pictures):
    frames, _, sizes = batch(pictures)
    tracklets, mask = frames.view(2, 2, *frames.shape[2:]), torch.tensor([[True, False], [True, True]])
    memory = vlm.encode(tracklets, mask, sizes.view(2, 2, 2))
    assert memory.frame_mask.tolist() == [[True]] * 3
    alone = encoded(vlm, [pictures[0], pictures[2], pictures[3]])
    torch.testing.assert_close(memory.tokens, alone.tokens, atol=1e-5, rtol=0)


def test_greedy_search_answers_as_generate_does(vlm, original, pictures):
    found, _ = greedy(vlm, encoded(vlm, pictures, noise=9.0))
    for ours, picture in zip(found.tolist(), pictures, strict=True):
        inputs = published_inputs(vlm, picture)
        output = original.generate(**inputs, do_sample=False, max_new_tokens=vlm.max_length + 1)
        theirs = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert ours[: len(theirs)] == theirs
    assert len({tuple(ours) for ours in found.tolist()}) == len(pictures)


def test_an_answer_does_not_depend_on_its_neighbours_in_the_batch(vlm, pictures):
    together = greedy(vlm, encoded(vlm, pictures))
    for tokens, scores, picture in zip(*together, pictures, strict=True):
        alone = greedy(vlm, encoded(vlm, [picture]))
        assert torch.equal(tokens, alone[0][0])
        torch.testing.assert_close(scores, alone[1][0], atol=1e-4, rtol=0)


def test_a_beam_finds_the_score_of_its_reading_in_one_pass_over_it(vlm, folder, pictures):
    memory = encoded(vlm, pictures)
    for item, hypotheses in enumerate(beam(vlm, memory, width=3, n_best=2)):
        assert [len(hypothesis.token_log_probs) for hypothesis in hypotheses] == [
            len(hypothesis.tokens) + 1 for hypothesis in hypotheses
        ]
        alone = encoded(vlm, [pictures[item]])
        for hypothesis in hypotheses:
            targets = torch.tensor([[0, *hypothesis.tokens, vlm.end]])
            mean = -hypothesis.log_prob / len(hypothesis.token_log_probs)
            assert float(vlm.loss(alone, targets)) == pytest.approx(mean, abs=1e-4)


def test_a_state_that_was_stepped_from_can_be_stepped_from_again(vlm, pictures):
    state = vlm.start(encoded(vlm, pictures), 1)
    tokens = torch.full((4,), vlm.begin)
    first, after = vlm.step(state, tokens)
    vlm.step(after, first.argmax(-1))
    torch.testing.assert_close(vlm.step(state, tokens)[0], first)


def test_items_leave_with_their_beams_and_beams_follow_their_parents(vlm, pictures):
    memory = encoded(vlm, pictures)
    state = vlm.start(memory, 2)
    _, state = vlm.step(state, torch.full((8,), vlm.begin))
    _, state = vlm.step(state, torch.arange(8))
    chosen = state.reorder(torch.tensor([1, 1, 3, 2, 4, 5, 7, 6])).keep(torch.tensor([1, 3]))
    swapped, _ = vlm.step(chosen, torch.tensor([20, 21, 22, 23]))
    expected, _ = vlm.step(state, torch.tensor([0, 0, 21, 20, 0, 0, 23, 22]))
    torch.testing.assert_close(swapped, expected[[3, 2, 7, 6]], atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_over_answer_tokens_of_the_published_model(vlm, original, folder, pictures):
    targets = tiny_codec(folder).encode_batch(TEXTS)
    total, count = 0.0, 0
    for picture, row in zip(pictures, targets, strict=True):
        answer = row[1 : row.tolist().index(vlm.end) + 1]
        inputs = published_inputs(vlm, picture)
        tokens = torch.cat([inputs["input_ids"], answer[None]], dim=1)
        labels = tokens.clone()
        labels[:, : -len(answer)] = -100
        images = (tokens == vlm.collate.placeholder).int()
        given = inputs | {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": images}
        total += float(original(**given, labels=labels).loss) * len(answer)
        count += len(answer)
    assert float(vlm.loss(encoded(vlm, pictures, noise=9.0), targets)) == pytest.approx(total / count, abs=1e-4)


def test_padding_after_an_answer_changes_no_loss(vlm, folder, pictures):
    memory = encoded(vlm, pictures[:1])
    targets = tiny_codec(folder).encode_batch(TEXTS)
    assert float(vlm.loss(memory, targets[:1])) == pytest.approx(float(vlm.loss(memory, targets[:1, :4])), abs=1e-5)


def test_a_few_steps_on_one_sample_lower_its_loss_through_every_part(folder, pictures):
    model = tiny_vlm(folder).train()
    targets = tiny_codec(folder).encode_batch(TEXTS[:1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.loss(encoded(model, pictures[:1]), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    for part, prefixes in model.parts().items():
        reached = [value.grad for name, value in model.named_parameters() if name.startswith(prefixes)]
        assert any(grad is not None and grad.abs().sum() > 0 for grad in reached), part


def test_the_parts_name_every_parameter_once(vlm):
    prefixes = [prefix for names in vlm.parts().values() for prefix in names]
    assert set(vlm.parts()) == {"vision", "projector", "decoder"}
    for name, _ in vlm.named_parameters():
        assert sum(name.startswith(f"{prefix}.") for prefix in prefixes) == 1, name


def test_settings_and_weights_rebuild_the_model_without_its_source(vlm, folder, pictures, tmp_path):
    save_file({name: value.contiguous() for name, value in vlm.state_dict().items()}, tmp_path / "weights.safetensors")
    stored = VLMSettings.model_validate_json(vlm.settings.model_dump_json())
    settings = stored.model_copy(update={"source": "nowhere/at-all"})
    torch.manual_seed(99)
    rebuilt = VLM(settings, tiny_codec(folder)).eval().requires_grad_(False)
    assert rebuilt.settings.config == vlm.settings.config
    frames = encoded(vlm, pictures)
    assert not torch.allclose(greedy(rebuilt, encoded(rebuilt, pictures))[1], greedy(vlm, frames)[1])
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(greedy(rebuilt, encoded(rebuilt, pictures))[1], greedy(vlm, frames)[1])


def test_half_precision_leaves_the_angles_of_rotary_embeddings_exact(vlm, pictures):
    half = copy.deepcopy(vlm).to(torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for (name, ours), (_, theirs) in zip(half.named_buffers(), vlm.named_buffers(), strict=True):
        assert ours.dtype == torch.float32, name
        assert torch.equal(ours, theirs), name
    frames, mask, sizes = batch(pictures)
    first, _ = half.step(half.start(half.encode(frames.bfloat16(), mask, sizes), 1), torch.full((4,), half.begin))
    assert first.dtype == torch.float32
    assert first.exp().sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-4)


def test_a_memory_keeps_its_grids_when_its_tokens_change(vlm, pictures):
    memory = encoded(vlm, pictures)
    brighter = replace(memory, tokens=memory.tokens * 2)
    assert not torch.allclose(greedy(vlm, brighter)[1], greedy(vlm, memory)[1])


def test_a_codec_of_characters_is_refused(folder):
    with pytest.raises(
        ValueError, match="reads and writes its own subwords, and this codec has the charset '0123456789'"
    ):
        VLM(VLMSettings(source=str(folder)), Codec(DIGITS, 2))


def test_a_model_of_another_family_is_refused_by_its_name(folder):
    with pytest.raises(
        ValueError, match="elsewhere is a llava; vision-language recognizers are qwen2_vl and qwen2_5_vl"
    ):
        VLM(VLMSettings(source="elsewhere", config={"model_type": "llava"}), tiny_codec(folder))


def test_a_model_with_patches_of_another_size_is_refused(vlm, folder):
    assert vlm.settings.config is not None
    config = copy.deepcopy(vlm.settings.config)
    config["vision_config"]["patch_size"] = 16
    with pytest.raises(ValueError, match="has patches of 16 pixels, 2 × 2 of them to an image token"):
        VLM(VLMSettings(source="elsewhere", config=config), tiny_codec(folder))


def test_a_tokenizer_of_another_model_is_refused(vlm, folder):
    assert vlm.settings.config is not None
    config = {**vlm.settings.config, "image_token_id": 5}
    with pytest.raises(ValueError, match="the codec's tokens are not the model's; use the tokenizer beside it"):
        VLM(VLMSettings(source="elsewhere", config=config), tiny_codec(folder))


def test_a_smallest_picture_larger_than_the_largest_is_refused():
    with pytest.raises(ValueError, match="min_pixels 3136 is more than max_pixels 784"):
        VLMSettings(source="unused", max_pixels=STEP**2)
