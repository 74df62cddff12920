from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from detect_ai.parts import Parts, split


@dataclass(frozen=True)
class Thing:
    size: tuple[float, ...]


things = st.lists(st.builds(Thing, st.tuples(st.just(1), st.integers(0, 30))), max_size=40)


@given(things, st.integers(1, 8), st.integers(1, 50))
def test_parts_keep_the_order_and_the_limits_and_are_as_full_as_they_can_be(items, most, longest):
    parts = list(split(items, (most, longest)))
    assert [item for part in parts for item in part] == items
    sizes = [[sum(sizes) for sizes in zip(*(item.size for item in part), strict=True)] for part in parts]
    for part, (count, total) in zip(parts, sizes, strict=True):
        assert len(part) == 1 or (count <= most and total <= longest)
    for (count, total), after in zip(sizes, parts[1:], strict=False):
        assert count == most or total + after[0].size[1] > longest or total >= longest


def test_a_full_part_does_not_wait_for_the_next_item():
    parts = Parts((2,))
    assert parts.push(Thing((1,))) == []
    assert parts.push(Thing((1,))) == [[Thing((1,))] * 2]
    assert parts.rest() == []
