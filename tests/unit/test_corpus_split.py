import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.config import SPLITS
from detect_ai.corpus.split import assign_splits, require_both_classes, shuffle_key
from detect_ai.errors import CorpusError

SHARES = dict(zip(SPLITS, (0.6, 0.1, 0.15, 0.15), strict=True))
GROUPS = st.lists(st.integers(0, 40).map("g{}".format), min_size=1, max_size=120)


@given(GROUPS, st.integers(0, 5))
def test_no_group_is_in_two_splits_and_every_row_is_in_one(names, seed):
    groups = pd.Series(names)
    splits = assign_splits(groups, SHARES, seed)
    assert set(splits) <= set(SPLITS)
    assert (splits.groupby(groups).nunique() == 1).all()


@given(GROUPS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split_of_a_group_hangs_on_the_set_of_groups_and_the_seed_alone(names, seed, random):
    shuffled = names[:]
    random.shuffle(shuffled)
    first = dict(zip(names, assign_splits(pd.Series(names), SHARES, seed), strict=True))
    assert dict(zip(shuffled, assign_splits(pd.Series(shuffled), SHARES, seed), strict=True)) == first


@pytest.mark.parametrize("count", [293, 40, 1000])
def test_the_groups_are_shared_out_as_asked_to_within_one(count):
    groups = pd.Series([f"g{i}" for i in range(count)])
    found = assign_splits(groups, SHARES, 0).value_counts()
    for split, share in SHARES.items():
        assert abs(found[split] - share * count) <= 1


def test_another_seed_makes_other_splits():
    groups = pd.Series([f"g{i}" for i in range(100)])
    assert not assign_splits(groups, SHARES, 0).equals(assign_splits(groups, SHARES, 1))


def test_the_order_of_groups_is_random():
    """Groups in the order of their names (of a date, say) would make the splits differ in kind."""
    groups = pd.Series([f"g{i:04d}" for i in range(1000)])
    places = groups.index[assign_splits(groups, SHARES, 0) == "test"]
    assert 400 < places.to_numpy().mean() < 600


def test_the_key_is_the_same_on_every_machine_and_takes_any_name():
    assert shuffle_key(0, "lee-000")[:16] == "53eaeaf875baf733"
    assert shuffle_key(0, "lone \ud83d") != shuffle_key(0, "lone \ud83e")
    assert shuffle_key(1, "1a") != shuffle_key(11, "a")


def test_splits_with_both_classes_pass():
    require_both_classes(pd.Series([0, 1, 1, 0]), pd.Series(["a", "a", "b", "b"]), {"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(("labels", "found"), [([0, 0, 1, 0], "2 human and 0 AI"), ([1, 1, 1, 0], "0 human and 2 AI")])
def test_a_split_that_lacks_a_class_is_refused_with_the_counts(labels, found):
    with pytest.raises(CorpusError) as refused:
        require_both_classes(pd.Series(labels), pd.Series(["test", "test", "b", "b"]), {"b": 0.5, "test": 0.5})
    assert str(refused.value) == (
        f"split 'test' has {found} texts: expected both classes in every split. "
        "Add texts or groups of the missing class, or give the split a larger share in corpus.split"
    )


def test_a_split_without_rows_is_refused():
    with pytest.raises(CorpusError, match=r"^split 'c' has 0 human and 0 AI texts"):
        require_both_classes(pd.Series([0, 1]), pd.Series(["a", "a"]), {"a": 0.5, "c": 0.5})
