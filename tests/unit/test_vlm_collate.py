from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glyphrun.images import ImageProcessor
from glyphrun.models.vlm import VLM, VLMSettings
from glyphrun.models.vlm_collate import AFTER, BEFORE, IGNORED, PLACEHOLDER, CollateError
from glyphrun.models.vlm_patches import STEP, patchify
from tiny_vlm import FAMILIES, save_tiny, tiny_codec, tiny_vlm

SIZES = [
    (5, 9),
    (13, 200),
    (48, 1100),
    (28, 28),
    (40, 40),
    (13, 90),
    (200, 20),
    (333, 517),
    (1080, 1920),
    (90, 13),
    (70, 70),
]
BUDGETS = [(4 * STEP**2, 512 * STEP**2), (64 * STEP**2, 64 * STEP**2), (STEP**2, 30 * STEP**2)]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return tiny_vlm(folder)


@pytest.fixture(scope="module")
def original(folder: Path):
    """The same weights as transformers runs them."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def random_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def normalised(settings: VLMSettings, picture: np.ndarray) -> Tensor:
    """(3, H, W) float, as the engine gives it to a recognizer."""
    processor = ImageProcessor(**settings.input.model_dump())
    return processor.normalise(torch.from_numpy(processor(picture).pixels))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", SIZES)
def test_one_budget_gives_the_grid_and_the_pixels_of_the_published_processor(budget, size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = VLMSettings(source="unused", min_pixels=budget[0], max_pixels=budget[1])
    theirs = Qwen2VLImageProcessorPil(min_pixels=budget[0], max_pixels=budget[1])(
        random_picture(*size), return_tensors="pt", input_data_format="channels_last"
    )
    patches, grids = patchify([normalised(settings, random_picture(*size))])
    assert grids.tolist() == theirs["image_grid_thw"].tolist()
    torch.testing.assert_close(patches, theirs["pixel_values"], atol=1e-5, rtol=0)


def test_patches_of_a_fitting_picture_are_those_of_the_fast_processor():
    from transformers import Qwen2VLImageProcessor

    settings = VLMSettings(source="unused")
    pictures = [random_picture(56, 84), random_picture(28, 140)]
    theirs = Qwen2VLImageProcessor(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)(
        pictures, return_tensors="pt", input_data_format="channels_last"
    )
    patches, grids = patchify([normalised(settings, picture) for picture in pictures])
    assert grids.tolist() == theirs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 2, 10]]
    torch.testing.assert_close(patches, theirs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [1, 6, 30, 37, 512])
def test_the_input_states_the_whole_budget_as_a_picture_that_fits(tokens):
    stated = VLMSettings(source="unused", min_pixels=1, max_pixels=tokens * STEP**2).input
    assert stated.height * stated.width == tokens * STEP**2
    assert stated.height % STEP == stated.width % STEP == 0


def test_a_picture_that_is_no_whole_number_of_squares_is_refused():
    with pytest.raises(ValueError, match="30 × 56 pixels cannot be cut into squares of 28: let the image processor"):
        patchify([torch.zeros(3, 56, 30)])


def test_positions_are_those_of_the_published_models(vlm, original):
    grids = [(2, 5), (4, 1), (1, 1)]
    answers = torch.tensor([[9, 8, 7, vlm.end], [9, vlm.end, 0, 0], [vlm.end, 0, 0, 0]])
    batch = vlm.collate(grids, answers)
    expected, _ = original.model.get_rope_index(
        batch.tokens,
        batch.pictures.int(),
        image_grid_thw=torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in grids]),
        attention_mask=batch.mask,
    )
    assert batch.positions.tolist() == expected.tolist()


def test_a_batch_has_every_image_token_and_labels_for_answers_alone(vlm):
    answers = torch.tensor([[9, 8, 7, vlm.end], [9, vlm.end, 0, 0]])
    batch = vlm.collate([(2, 5), (3, 1)], answers)
    assert (batch.tokens == vlm.collate.placeholder).sum(1).tolist() == batch.pictures.sum(1).tolist() == [10, 3]
    ahead = len(vlm.collate.before) + len(vlm.collate.after)
    assert batch.prompt == ahead + 10
    assert batch.mask.sum(1).tolist() == [ahead + 10 + 4, ahead + 3 + 2]
    assert batch.labels[:, batch.prompt :].tolist() == [[9, 8, 7, vlm.end], [9, vlm.end, IGNORED, IGNORED]]
    assert (batch.labels[:, : batch.prompt] == IGNORED).all()
    assert vlm.collate([(2, 5), (3, 1)]).tokens.tolist() == batch.tokens[:, : batch.prompt].tolist()


def test_the_prompt_is_the_published_chat_format(vlm, folder):
    from transformers import AutoTokenizer

    tokens = vlm.collate([(1, 2)]).tokens[0]
    assert AutoTokenizer.from_pretrained(folder).decode(tokens) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Read.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_truncation_takes_image_tokens_away_where_ours_refuses_the_sample_by_name(vlm, original, folder):
    from transformers import AutoTokenizer, Qwen2VLImageProcessor

    picture, text = random_picture(140, 196), "thirty-two"  # 5 × 7 image tokens
    pixels = Qwen2VLImageProcessor()(picture, return_tensors="pt", input_data_format="channels_last")
    ahead = len(vlm.collate.before) + len(vlm.collate.after)
    plain = AutoTokenizer.from_pretrained(folder)(
        f"{BEFORE}{PLACEHOLDER * 35}{AFTER[0]}Read.{AFTER[1]}{text}",
        truncation=True,
        max_length=len(vlm.collate.before) + 20,
        return_tensors="pt",
    )
    images = (plain["input_ids"] == vlm.collate.placeholder).int()
    assert images.sum() == 20
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 20, features: 35"):
        original(**plain, **pixels, mm_token_type_ids=images)

    answer = tiny_codec(folder).encode_batch([text])[:, 1:]
    short = tiny_vlm(folder, max_tokens=len(vlm.collate.before) + 20)
    needed = ahead + 35 + len(text) + 1
    with pytest.raises(CollateError) as refused:
        short.collate([(5, 7)], answer, ["page-7"])
    assert str(refused.value) == (
        f"page-7 needs {needed} tokens and max_tokens is {short.settings.max_tokens}: the prompt has {ahead}, the picture "
        "35 (5 × 7) and the answer 11; lower max_pixels or raise max_tokens"
    )
    fitting = tiny_vlm(folder, max_tokens=needed)
    assert fitting.collate([(5, 7)], answer, ["page-7"]).pictures.sum() == 35


def test_two_pixel_budgets_disagree_where_one_cannot(vlm, original, folder):
    from transformers import AutoTokenizer, Qwen2VLImageProcessor

    picture = random_picture(140, 196)
    for_pixels, for_prompt = Qwen2VLImageProcessor(max_pixels=20 * STEP**2), Qwen2VLImageProcessor()
    pixels = for_pixels(picture, return_tensors="pt", input_data_format="channels_last")
    count = for_prompt.get_number_of_image_patches(140, 196) // 4
    prompt = AutoTokenizer.from_pretrained(folder)(
        f"{BEFORE}{PLACEHOLDER * count}{AFTER[0]}Read.{AFTER[1]}", return_tensors="pt"
    )
    images = (prompt["input_ids"] == vlm.collate.placeholder).int()
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        original(**prompt, **pixels, mm_token_type_ids=images)

    ours = tiny_vlm(folder, max_pixels=20 * STEP**2)
    frame = normalised(ours.settings, picture)
    with torch.no_grad():
        memory = ours.encode(frame[None, None], torch.ones(1, 1, dtype=torch.bool))
    assert memory.tokens.shape[1] == ours.collate(memory.grids).pictures.sum() <= 20


def test_a_sample_is_refused_before_training_by_its_own_name(vlm, folder):
    short = tiny_vlm(folder, max_tokens=90)
    sizes = [(28, 56), (56, 28 * 20), (28, 28)]
    with pytest.raises(
        CollateError, match="^line 12 needs 109 tokens .* the picture 40 \\(2 × 20\\) and the answer 5;"
    ):
        short.check(sizes, [3, 5, 4], ["line 11", "line 12", "line 13"])
    vlm.check(sizes, [3, 5, 4], ["line 11", "line 12", "line 13"])


def test_a_prompt_that_contains_the_placeholder_is_refused(folder):
    with pytest.raises(CollateError, match="contains <|image_pad|>, which stands for the picture"):
        tiny_vlm(folder, prompt="Read <|image_pad|>.")
