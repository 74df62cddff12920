"""Mixed documents: AI sentences inside a human text, with the truth about every character.

They judge the scores of sentences and windows. `detect_ai.text.normalize.sentences` cuts normalised texts: mix those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detect_ai.core.errors import InputError
from detect_ai.text.sentences import sentences

Span = tuple[int, int]
SHORTEST_RUN = 2  # sentences


@dataclass(frozen=True, slots=True)
class Mixed:
    """A text of two authors.

    Attributes:
        text: begins and ends with what the human wrote.
        ai_spans: `[start, end)` of the AI's parts in characters, ascending and disjoint.
    """

    text: str
    ai_spans: tuple[Span, ...]


def mix(human: str, ai: str, rng: np.random.Generator, share: float = 0.3, runs: int = 1) -> Mixed:
    """Put successive sentences of an AI text between the sentences of a human one, which stays whole.

    Args:
        human: a text of at least two sentences.
        ai: a text of at least two sentences.
        rng: draws which sentences, how they part into runs, and where those stand.
        share: of the mixed text's sentences that are the AI's, in (0, 1); less where the AI text is too short.
        runs: parts in which the AI's sentences stand, two or more sentences each; fewer where there is no room.

    Raises:
        InputError: a text of fewer than two sentences, a share or a number of runs that cannot be.
    """
    if not (0 < share < 1 and runs >= 1):
        raise InputError(f"mix: need 0 < share < 1 and runs >= 1, got share={share}, runs={runs}")
    ours, theirs = sentences(human), sentences(ai)
    if min(len(ours), len(theirs)) < SHORTEST_RUN:
        raise InputError(f"mix: need texts of two sentences, got {len(ours)} (human) and {len(theirs)} (AI)")
    wanted = round(len(ours) * share / (1 - share))
    count = min(len(theirs), max(SHORTEST_RUN, wanted))
    runs = min(runs, count // SHORTEST_RUN, len(ours) - 1)
    first = int(rng.integers(len(theirs) - count + 1))
    after = np.sort(rng.choice(len(ours) - 1, size=runs, replace=False)).tolist()
    text, spans, kept = "", [], 0
    for place, (start, stop) in zip(after, _runs(count, runs, rng), strict=True):
        end, resumes = ours[place][1], ours[place + 1][0]
        text += human[kept:resumes]
        part = ai[theirs[first + start][0] : theirs[first + stop - 1][1]]
        spans.append((len(text), len(text) + len(part)))
        text += part + human[end:resumes]
        kept = resumes
    return Mixed(text + human[kept:], tuple(spans))


def sentence_labels(spans: Sequence[Span], ai_spans: Sequence[Span]) -> NDArray[np.int64]:
    """1 for each sentence `[start, end)` of whose characters more than half lie in the AI's parts, else 0.

    Args:
        spans: of the sentences, in characters.
        ai_spans: disjoint, in characters of the same text.
    """
    sentence = np.array(spans, np.int64).reshape(-1, 1, 2)
    part = np.array(ai_spans, np.int64).reshape(1, -1, 2)
    shared = np.minimum(sentence[..., 1], part[..., 1]) - np.maximum(sentence[..., 0], part[..., 0])
    inside = shared.clip(min=0).sum(axis=1)
    lengths = (sentence[..., 1] - sentence[..., 0])[:, 0]
    return np.where(2 * inside > lengths, 1, 0)


def _runs(count: int, runs: int, rng: np.random.Generator) -> list[Span]:
    """Part `count` sentences at random into runs `[start, stop)` of at least `SHORTEST_RUN`."""
    spare = count - SHORTEST_RUN * runs
    cuts = np.sort(rng.integers(spare + 1, size=runs - 1)) + SHORTEST_RUN * np.arange(1, runs)
    edges = [0, *cuts.tolist(), count]
    return list(pairwise(edges))
