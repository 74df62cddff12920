import pytest

from detect_ai.release.timing import alternate, ratio


class Clock:
    """A clock that runs by what the arms do."""

    now = 0.0

    def __call__(self):
        return self.now


def test_every_arm_runs_once_a_round_and_the_first_round_is_not_counted():
    clock, calls = Clock(), []

    def arm(name, seconds):
        def run():
            calls.append(name)
            clock.now += seconds[min(calls.count(name), len(seconds)) - 1]

        return run

    found = alternate({"a": arm("a", [9, 1, 2, 3]), "b": arm("b", [9, 4])}, 3, clock)
    assert found == {"a": [1, 2, 3], "b": [4, 4, 4]}
    assert calls == [*"ab", *"ab", *"ba", *"ab"]


def test_a_ratio_is_taken_within_each_round():
    found = ratio([2, 40, 6], [1, 10, 2])  # a slow second round is slow for both
    assert (found.median, found.low, found.high) == pytest.approx((3, 2, 4))
