"""A line recognizer: convolutions and attention along a text line of any width, read by connectionist temporal classification.

CTC (Graves et al., ICML 2006) gives each place along the line a distribution over the characters and a blank; a reading
is what remains when repeats are merged and blanks are dropped.

Padding changes no answer. What lies right of the picture is set to zero after every convolution, which is what the
convolution itself assumes beyond a picture's edge; attention does not see it; and the norms take their statistics from a
picture's own places. So neither padding nor the other lines of a batch enter a reading, as they would with batch norm,
and a batch that is spread over several processes trains as it would in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.inputs import InputSettings
from glyphrun.models.layers import attend
from glyphrun.models.multiscale import DepthFusion, depths
from glyphrun.models.recognizer import Memory, ModelSettings, Recognizer, TokenSpace

BLANK = 0  # the id that a codec gives to the end of a text, which CTC has no use for
SHRINK = (8, 4)  # of height and width between the picture and the places
NEIGHBOURS = 9  # places that a depthwise convolution sees: about the width of two characters


class LineCTCSettings(ModelSettings):
    """Everything that fixes the shape of a line recognizer.

    height: pixels of every line; max_width: a longer line is squeezed to it. stem: channels at a half, a quarter and an
    eighth of the height; the last stage keeps a quarter of the width. scales: encoder depths that are fused.
    """

    kind: Literal["line-ctc"] = "line-ctc"
    height: int = Field(48, ge=SHRINK[0], multiple_of=SHRINK[0])
    max_width: int = Field(1152, ge=SHRINK[1])
    stem: tuple[int, int, int] = (32, 64, 128)
    width: int = Field(256, ge=8)
    depth: int = Field(8, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    scales: int = Field(1, ge=1, le=3)

    @model_validator(mode="after")
    def _sizes_fit(self) -> LineCTCSettings:
        if min(self.stem) < 1:
            raise ValueError(f"the stem's channels are {self.stem}: each must be at least 1")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        depths(self.depth, self.scales)
        return self

    @property
    def input(self) -> InputSettings:
        """Lines of one height, as wide as they are."""
        return InputSettings(height=self.height, width=self.max_width, resize="line")


class Widths(NamedTuple):
    """How far to the right the pictures of a batch reach; each: (N,) long. shortest is known without asking the device."""

    each: Tensor
    shortest: int

    def after(self, stride: int) -> Widths:
        """What is left of them after a convolution."""
        return Widths((self.each + stride - 1) // stride, (self.shortest + stride - 1) // stride)

    def zero_padding_(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), changed in place; only the part that some picture does not reach is touched."""
        if self.shortest < x.shape[3]:
            x[..., self.shortest :].mul_(self.exists(x.shape[3])[:, None, None, self.shortest :])
        return x

    def exists(self, length: int) -> Tensor:
        """(N, length) bool, True below each width."""
        return torch.arange(length, device=self.each.device) < self.each.unsqueeze(1)


class LineNorm(nn.Module):
    """Each channel of each line brought to mean 0 and variance 1 over the line's own places, then scaled and shifted.

    Instance norm (arXiv 1607.08022) that leaves padding out: thick and thin pens look alike after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, widths: Widths) -> Tensor:
        """x: (N, C, H, W), zero on padding → float32."""
        x = x.float()  # in half precision a mean over many places would be off by more than what tells them apart
        places = (widths.each * x.shape[2]).view(-1, 1, 1, 1)
        mean = x.sum((2, 3), keepdim=True) / places  # (N, C, 1, 1)
        variance = (x.square().sum((2, 3), keepdim=True) / places - mean.square()).clamp(min=0.0)
        scale = (variance + 1e-4).rsqrt() * self.weight.view(-1, 1, 1)
        return torch.addcmul(self.bias.view(-1, 1, 1) - mean * scale, x, scale)


class StemLayer(nn.Module):
    """A 3×3 convolution, a norm and a rectifier; padding stays zero."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = LineNorm(outputs)

    def forward(self, x: Tensor, widths: Widths) -> tuple[Tensor, Widths]:
        """x: (N, C, H, W), zero on padding → the same at this layer's resolution."""
        widths = widths.after(self.stride[1])
        x = widths.zero_padding_(self.conv(x))
        return widths.zero_padding_(self.norm(x, widths)).to(x.dtype).relu_(), widths


class Stem(nn.Module):
    """(N, 3, H, W) → (N, ceil(W / 4), D): two layers at a resolution, the height folded into the channels at the end."""

    def __init__(self, settings: LineCTCSettings) -> None:
        super().__init__()
        inputs = 3
        self.layers = nn.ModuleList()
        for channels, stride in zip(settings.stem, ((2, 2), (2, 2), (2, 1)), strict=True):
            self.layers.append(StemLayer(inputs, channels, stride))
            self.layers.append(StemLayer(channels, channels, (1, 1)))
            inputs = channels
        self.project = nn.Linear(inputs * (settings.height // SHRINK[0]), settings.width)

    def forward(self, x: Tensor, widths: Widths) -> tuple[Tensor, Widths]:
        """x: (N, 3, H, W); widths in pixels → places and how many of them each line has."""
        # A copy that may be changed, in the order that convolutions on a CPU are several times faster in.
        x = widths.zero_padding_(torch.empty_like(x, memory_format=torch.channels_last).copy_(x))
        for layer in self.layers:
            x, widths = layer(x, widths)
        return self.project(x.permute(0, 3, 1, 2).flatten(2)), widths  # (N, S, C · H / 8) → (N, S, D)


class LineBlock(nn.Module):
    """A pre-norm transformer block whose places first hear their neighbours, which tells them where they are.

    The depthwise convolution is the conditional positional encoding of arXiv 2102.10882: it knows no longest line.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.neighbours = nn.Conv1d(width, width, NEIGHBOURS, padding=NEIGHBOURS // 2, groups=width)
        self.norm_attn = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, exists: Tensor | None) -> Tensor:
        """x: (N, S, D); exists: (N, S) bool, None if all places do → (N, S, D)."""
        seen = x if exists is None else x * exists.unsqueeze(2)
        x = x + self.neighbours(seen.transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(self._attention(self.norm_attn(x), exists))
        return x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(self.norm_mlp(x))))))

    def _attention(self, x: Tensor, exists: Tensor | None) -> Tensor:
        query, keys, values = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, S, d)
        mixed = attend(query, (keys, values), None if exists is None else exists[:, None, None, :])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class LineEncoder(nn.Module):
    """Lines → the features of every place, after each of the blocks that the fusion asks for."""

    def __init__(self, settings: LineCTCSettings) -> None:
        super().__init__()
        self.kept = depths(settings.depth, settings.scales)
        self.stem = Stem(settings)
        self.blocks = nn.ModuleList(
            LineBlock(settings.width, settings.heads, settings.mlp_ratio, settings.dropout)
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, x: Tensor, widths: Widths) -> tuple[list[Tensor], Tensor | None]:
        """x: (N, 3, H, W) → features (N, S, D), shallow to deep, and which exist, (N, S) bool, None if all of them do."""
        x, widths = self.stem(x, widths)
        exists = widths.exists(x.shape[1]) if widths.shortest < x.shape[1] else None
        # Quietly: a place's number as loud as its content holds a short training back for hundreds of steps.
        x = x + 0.1 * _waves(x.shape[1], x.shape[2], x)
        features = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, exists)
            if number in self.kept:
                features.append(x)
        return [*features[:-1], self.norm(x)], exists


class LineCTC(Recognizer):
    """Text lines → characters, all places at once. Every frame is a line of its own.

    Token ids: 0 blank, 1..n characters.
    """

    reads_frames_together = False
    settings: LineCTCSettings

    def __init__(self, settings: LineCTCSettings, tokens: TokenSpace) -> None:
        """Raises ValueError if the tokens are no characters."""
        super().__init__()
        if not tokens.charset or tokens.end != BLANK:
            raise ValueError("line-ctc reads characters: give it the codec of a charset, not one of subwords")
        self.settings = settings
        self.characters = len(tokens.charset)
        self.encoder = LineEncoder(settings)
        self.fusion = DepthFusion(settings.width, settings.scales)
        self.head = nn.Linear(settings.width, self.characters + 1)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of the modules that see, fuse and read."""
        return {"vision": ("encoder",), "projector": ("fusion",), "decoder": ("head",)}

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> Memory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool; sizes: (B, T, 2) long or None.

        Raises ValueError for frames of another height than the settings', or pictures wider than their frames.
        """
        lines = frames[frame_mask]  # (N, 3, H, W)
        if lines.shape[2] != self.settings.height:
            raise ValueError(
                f"this recognizer reads lines {self.settings.height} pixels high, and these are {lines.shape[2]}: "
                "prepare them with its own image processor"
            )
        features, exists = self.encoder(lines, _widths(lines, None if sizes is None else sizes[frame_mask]))
        tokens = self.fusion(features)
        if exists is not None:
            tokens = tokens * exists.unsqueeze(2)
        return Memory(tokens, exists, tokens, frame_mask.new_ones(len(tokens), 1))

    def emissions(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, S, n + 1), float32, and how many of the S places each line has: (B,) long."""
        items, places = memory.tokens.shape[:2]
        if memory.mask is None:
            lengths = torch.full((items,), places, device=memory.tokens.device)
        else:
            lengths = memory.mask.sum(1)
        return self.head(memory.tokens).float().log_softmax(-1), lengths

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a character; targets: (B, L) long: begin, characters, end, pad.

        An empty label counts as one character. Raises ValueError naming the rows whose line is too narrow for its label.
        """
        log_probs, places = self.emissions(memory)
        characters = (targets >= 1) & (targets <= self.characters)
        lengths = characters.sum(1)
        labels = targets[:, 1 : 1 + int(lengths.max())]
        # Between two equal characters CTC needs a blank, or it would merge them.
        needed = lengths + (characters[:, 1:] & (targets[:, 1:] == targets[:, :-1])).sum(1)
        if bool((needed > places).any()):
            raise ValueError(_too_narrow((needed > places).nonzero().flatten().tolist(), needed, places))
        losses = F.ctc_loss(log_probs.transpose(0, 1), labels, places, lengths, blank=BLANK, reduction="sum")
        return losses / lengths.clamp(min=1).sum()

    def check(self, sizes: Sequence[tuple[int, int]], lengths: Sequence[int], names: Sequence[str]) -> None:
        """Refuse lines that are too narrow for their labels, by name; lengths: tokens of each label, its end counted."""
        for (_, width), length, name in zip(sizes, lengths, names, strict=True):
            least = SHRINK[1] * (length - 2) + 1
            if width < least:
                raise ValueError(
                    f"{name} has a label of {length - 1} characters and is {width} pixels wide, where it needs {least}: take "
                    "the line out, correct its text, or cut it with more of its width left"
                )

    def loss_terms(self, targets: Tensor) -> Tensor:
        """How many characters ``loss`` is the mean over; an empty label counts as one."""
        return ((targets >= 1) & (targets <= self.characters)).sum(1).clamp(min=1).sum()


def _too_narrow(rows: list[int], needed: Tensor, places: Tensor) -> str:
    listed = "; ".join(
        f"row {row} needs a line at least {SHRINK[1] * (int(needed[row]) - 1) + 1} pixels wide "
        f"and has about {SHRINK[1] * int(places[row])}"
        for row in rows
    )
    return (
        f"labels too long for their lines: {listed}. Take these lines out, correct their texts, or cut lines with more "
        "of their width left"
    )


def _widths(lines: Tensor, sizes: Tensor | None) -> Widths:
    if sizes is None:
        return Widths(torch.full((len(lines),), lines.shape[3], device=lines.device), lines.shape[3])
    each = sizes[:, 1]
    least, most = int(each.min()), int(each.max())
    if not 1 <= least <= most <= lines.shape[3]:
        raise ValueError(
            f"pictures {each.tolist()} pixels wide do not fit frames {lines.shape[3]} pixels wide: "
            "sizes are (height, width) of the picture inside each frame"
        )
    return Widths(each, least)


def _waves(length: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (arXiv 1706.03762) of any number of places: (length, width)."""
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-torch.log(torch.tensor(10_000.0)) / width))
    phases = torch.arange(length, device=like.device).unsqueeze(1) * rates
    return torch.cat([phases.sin(), phases.cos()], dim=1).to(like.dtype)
