"""The cache of scores: right hits, a bound, the oldest first, nothing when it is off."""

from __future__ import annotations

import numpy as np

from serve_app.engine.cache import ScoreCache


def rows(*values: int) -> list[np.ndarray]:
    return [np.asarray([value, 7], np.int32) for value in values]


def test_what_was_kept_is_found_and_nothing_else() -> None:
    cache = ScoreCache(10)
    cache.keep(rows(1, 2), np.asarray([0.5, -0.5]))
    assert cache.find(rows(2, 3, 1)).tolist()[::2] == [-0.5, 0.5]
    assert np.isnan(cache.find(rows(3))[0])
    assert np.isnan(cache.find([np.asarray([1], np.int32)])[0])


def test_the_bound_drops_what_was_asked_for_least_recently() -> None:
    cache = ScoreCache(2)
    cache.keep(rows(1, 2), np.asarray([1.0, 2.0]))
    cache.find(rows(1))
    cache.keep(rows(3), np.asarray([3.0]))
    assert np.isnan(cache.find(rows(1, 2, 3))).tolist() == [False, True, False]


def test_a_size_of_nothing_keeps_nothing() -> None:
    cache = ScoreCache(0)
    cache.keep(rows(1), np.asarray([1.0]))
    assert np.isnan(cache.find(rows(1))[0])
