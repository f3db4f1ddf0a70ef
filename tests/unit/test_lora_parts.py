"""LoRA changes the parts that it is told to change, and nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from glyphrun.models.lora import LoraSettings, apply_lora, trainable_parameters, updates
from lora_recognizers import LORA, SMALL, SubwordReader, recognizer


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
