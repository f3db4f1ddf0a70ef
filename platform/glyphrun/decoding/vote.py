"""Votes: the readings of several frames, windows or recognizers become one ranked list of readings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, fsum, log

from glyphrun.decoding.mbr import expected_edits
from glyphrun.decoding.rover import SILENCE, Voice, confusion_network, consensus, shares
from glyphrun.decoding.settings import VoteMethod

Segment = Callable[[str], Sequence[str]]
LengthPriors = Mapping[int, float]


@dataclass(frozen=True)
class Hypothesis:
    """One reading with the natural logarithm of its probability, and those of its tokens (and of its end).

    pieces: what each token stands for in the text, a character or a subword.
    """

    text: str
    log_prob: float
    token_log_probs: tuple[float, ...]
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ballot:
    """What one frame says, or a window of so many ``frames`` from ``frame`` on; weight 0 if it was ignored."""

    frame: int
    text: str
    confidence: float
    weight: float
    frames: int = 1


@dataclass(frozen=True)
class MemberBallot:
    """What one recognizer of an ensemble says of an item.

    ms: how long it took over the batch, None if it did not end in time. status: «voted», «averaged» where all read as one,
    «late», or «failed: » and why; only the first two have a text and a weight.
    """

    member: str
    text: str
    confidence: float
    weight: float
    ms: float | None
    status: str


@dataclass(frozen=True)
class VoteRules:
    """Who votes how: everything that a vote depends on besides the readings.

    floor: the probability under which a reading is ignored. least: what the readings of an answer must weigh together;
    with less nothing is readable. weights: one a voter, 1 each by default. length_priors: how
    probable texts of so many characters are; a length that is not listed cannot be. segment: a text's characters, which
    no vote takes apart. silence_counts: «nothing readable» is a reading like any other; if not, it wins only where nobody
    reads, as frames of an item that shows its number once must not outvote the one that shows it.
    """

    method: VoteMethod = "sum"
    floor: float = 0.0
    weights: Sequence[float] | None = None
    length_priors: LengthPriors | None = None
    segment: Segment = tuple
    silence_counts: bool = False
    least: float = 0.0

    def weight(self, voter: int) -> float:
        return 1.0 if self.weights is None else self.weights[voter]

    def counts(self, hypothesis: Hypothesis) -> bool:
        """Whether a reading has a say."""
        return exp(hypothesis.log_prob) >= self.floor and bool(hypothesis.text or self.silence_counts)

    def prior(self, text: str) -> float:
        """How probable the length of a text is; silence is as probable as the likeliest length unless 0 is listed."""
        if self.length_priors is None:
            return 1.0
        if not text:
            return self.length_priors.get(0, self.largest_prior)
        return self.length_priors.get(len(self.segment(text)), 0.0)

    @property
    def largest_prior(self) -> float:
        """What a reading weighs at most."""
        return max(self.length_priors.values(), default=0.0) if self.length_priors is not None else 1.0


def combine(
    voters: Sequence[Sequence[Hypothesis]],
    method: VoteMethod = "sum",
    *,
    floor: float = 0.0,
    weights: Sequence[float] | None = None,
    length_priors: LengthPriors | None = None,
    segment: Segment = tuple,
    silence_counts: bool = False,
    least: float = 0.0,
) -> tuple[list[Hypothesis], list[float]]:
    """``vote`` by rules that are given one by one."""
    return vote(voters, VoteRules(method, floor, weights, length_priors, segment, silence_counts, least))


def vote(voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> tuple[list[Hypothesis], list[float]]:
    """The readings of all voters, ranked, and the weight that each voter got; voters: n-best lists, best first.

    sum: the probabilities of a reading in all lists (arXiv 2405.13896). majority: how many read it best; ties go by their
    confidence. confidence: the probabilities of best readings alone. longest: the longest best reading. mbr: the reading
    of the pooled lists with the fewest expected edits. rover: the best readings aligned, and a vote for each character.

    The probability of an answer is its share of what all readings weigh, so it does not fall along the list where length
    or risk ranks; that of rover is the product of its characters' shares. A single voter has nobody to outvote: its
    readings keep their own probabilities. Readings keep the token log-probabilities of their surest voter.

    Where the answer weighs less than ``least``, «nothing readable» stands before it, as probable as the share that it
    lacks, and the probabilities of all others shrink by as much.
    """
    given = [_weight_of(rules, number, voter[0]) for number, voter in enumerate(voters)]
    if len(voters) == 1:
        ranked = voters[0] if rules.length_priors is None else sorted(voters[0], key=lambda one: _by_prior(one, rules))
        best = ranked[0]
        return _or_silence(list(ranked), exp(best.log_prob) * rules.prior(best.text) * rules.weight(0), rules), given
    support = support_of(voters, rules)
    if not support:
        silent = fsum(exp(best.log_prob) for best, *_ in voters if not best.text)
        share = silent / (fsum(exp(best.log_prob) for best, *_ in voters) or 1.0)
        return [Hypothesis("", _log(share), (_log(share),))], given
    surest = _surest(voters, rules)
    if rules.method == "rover":
        return _aligned(voices_of(voters, rules), surest), given
    order = _order(support, voters, rules)
    total = fsum(support.values())
    ranked = [replace(surest[text], log_prob=_log(support[text] / total)) for text in order]
    return _or_silence(ranked, support[order[0]], rules), given


def ballots(voters: Sequence[Sequence[Hypothesis]], weights: Sequence[float]) -> list[Ballot]:
    """Each voter's best reading with the weight that it got; voters are frames."""
    return [
        Ballot(number, best.text, exp(best.log_prob), weight)
        for number, ((best, *_), weight) in enumerate(zip(voters, weights, strict=True))
    ]


def support_of(voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> dict[str, float]:
    """What each reading weighs altogether: 1 a voter in a majority, else its probability, times weights and priors."""
    parts: dict[str, list[float]] = {}
    for number, best, hypothesis in _readings(voters, rules):
        if not best and rules.method not in ("sum", "mbr"):
            continue
        said = 1.0 if rules.method == "majority" else exp(hypothesis.log_prob)
        parts.setdefault(hypothesis.text, []).append(said * rules.weight(number) * rules.prior(hypothesis.text))
    # Exactly rounded, so that the order of voters decides no tie.
    summed = {text: fsum(masses) for text, masses in parts.items()}
    return {text: mass for text, mass in summed.items() if mass > 0}


def voices_of(voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> list[Voice]:
    """A voice for each distinct best reading, those with most weight first; their characters weigh what voters give them."""
    said: dict[tuple[str, ...], list[tuple[tuple[float, ...], float]]] = {}
    for number, best, hypothesis in _readings(voters, rules):
        scale = rules.weight(number) * rules.prior(hypothesis.text)
        if best and scale > 0:
            characters, confidences = _character_confidences(hypothesis, rules.segment)
            silence = fsum(confidences) / len(confidences) if confidences else exp(hypothesis.log_prob)
            weights = tuple(scale * confidence for confidence in confidences)
            said.setdefault(characters, []).append((weights, scale * silence))
    voices = [
        Voice(
            characters,
            tuple(map(fsum, zip(*(weights for weights, _ in voters_of), strict=True))),
            fsum(silence for _, silence in voters_of),
        )
        for characters, voters_of in said.items()
    ]
    return sorted(voices, key=lambda voice: (-voice.silence, voice.characters))


def _or_silence(ranked: list[Hypothesis], weight: float, rules: VoteRules) -> list[Hypothesis]:
    """Some readings, behind «nothing readable» where what the first of them weighs is too little."""
    if weight >= rules.least or not ranked[0].text:
        return ranked
    heard = weight / rules.least
    lacking, kept = _log(1 - heard), _log(heard)
    others = [replace(one, log_prob=one.log_prob + kept) for one in ranked if one.text]
    return [Hypothesis("", lacking, (lacking,)), *others]


def _readings(voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> list[tuple[int, bool, Hypothesis]]:
    """All readings that count, with the number of their voter and whether they are its best."""
    return [
        (number, place == 0, hypothesis)
        for number, voter in enumerate(voters)
        if rules.counts(voter[0])
        for place, hypothesis in enumerate(voter)
        if rules.counts(hypothesis)
    ]


def _weight_of(rules: VoteRules, number: int, best: Hypothesis) -> float:
    if not rules.counts(best):
        return 0.0
    return rules.weight(number) * (1.0 if rules.method == "majority" else exp(best.log_prob))


def _surest(voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> dict[str, Hypothesis]:
    surest: dict[str, Hypothesis] = {}
    for _, _, hypothesis in _readings(voters, rules):
        if hypothesis.text not in surest or surest[hypothesis.text].log_prob < hypothesis.log_prob:
            surest[hypothesis.text] = hypothesis
    return surest


def _order(support: dict[str, float], voters: Sequence[Sequence[Hypothesis]], rules: VoteRules) -> list[str]:
    """The readings, best first; the last resort in a tie is the text itself."""
    if rules.method == "mbr":
        edits = expected_edits(support, rules.segment)
        return sorted(support, key=lambda text: (edits[text], -support[text], text))
    if rules.method == "majority":
        sure = support_of(voters, replace(rules, method="confidence"))
        return sorted(support, key=lambda text: (-support[text], -sure.get(text, 0.0), text))
    if rules.method == "longest":
        return sorted(support, key=lambda text: (-len(rules.segment(text)), -support[text], text))
    return sorted(support, key=lambda text: (-support[text], text))


def _aligned(voices: Sequence[Voice], surest: dict[str, Hypothesis]) -> list[Hypothesis]:
    """The consensus of the voices, then what they read themselves, with probabilities from the shares of the slots."""
    rows = confusion_network(voices)
    winners = consensus(rows)
    characters = tuple(said for said, _ in winners if said != SILENCE)
    kept = tuple(_log(share) for said, share in winners if said != SILENCE)
    closing = fsum(_log(share) for said, share in winners if said == SILENCE)
    best = Hypothesis("".join(characters), fsum((*kept, closing)), (*kept, closing), characters)
    slots = [shares(column) for column in zip(*rows, strict=True)]
    others: dict[str, float] = {}
    for row in rows:
        text = "".join(said for said, _ in row)
        others[text] = fsum(_log(slot[said]) for slot, (said, _) in zip(slots, row, strict=True))
    others.pop(best.text, None)
    ranked = sorted(others, key=lambda text: (-others[text], text))
    return [best, *(replace(surest[text], log_prob=others[text]) for text in ranked)]


def _character_confidences(hypothesis: Hypothesis, segment: Segment) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The characters of a reading, each with the probability of the tokens that it shares in.

    Where tokens do not spell the text, as after a correction, each character has the geometric mean.
    """
    characters, pieces = tuple(segment(hypothesis.text)), hypothesis.pieces
    if "".join(pieces) != hypothesis.text or len(hypothesis.token_log_probs) < len(pieces):
        return characters, (exp(hypothesis.log_prob / max(len(characters), 1)),) * len(characters)
    ends = list(accumulate(map(len, characters)))
    tokens = list(zip(accumulate(map(len, pieces)), map(len, pieces), hypothesis.token_log_probs, strict=False))
    confidences = tuple(
        exp(fsum(score for stop, size, score in tokens if stop > end - len(character) and stop - size < end))
        for character, end in zip(characters, ends, strict=True)
    )
    return characters, confidences


def _by_prior(hypothesis: Hypothesis, rules: VoteRules) -> tuple[float, float]:
    return -exp(hypothesis.log_prob) * rules.prior(hypothesis.text), -hypothesis.log_prob


def _log(probability: float) -> float:
    return log(max(probability, 1e-12))
