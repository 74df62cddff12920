import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import SPLITS
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.dedup import clusters
from detect_ai.corpus.splits import (
    ANY,
    MAX_JOINED_SHARE,
    TEST,
    assign_splits,
    crossing,
    join_groups,
    mask_of,
    require_both_classes,
    shuffle_key,
)

SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}
VALIDATION_OR_CALIBRATION = mask_of(["validation", "calibration"])


def names(count):
    return [f"g{i}" for i in range(count)]


def assign(groups, strata=None, masks=None, seed=0, shares=SHARES):
    groups = np.asarray(groups, np.int64)
    strata = np.zeros_like(groups) if strata is None else np.asarray(strata, np.int64)
    masks = np.full_like(groups, ANY) if masks is None else np.asarray(masks, np.int64)
    return assign_splits(groups, names(int(groups.max()) + 1), strata, masks, shares, seed)


def sizes(splits):
    return np.bincount(splits, minlength=4).tolist()


# Assigning


@given(st.lists(st.integers(0, 12), min_size=1, max_size=200), st.integers(0, 3))
def test_a_group_is_never_in_two_splits(groups, seed):
    splits = assign(groups, seed=seed)
    assert all(len(set(splits[np.asarray(groups) == group])) == 1 for group in set(groups))


@pytest.mark.parametrize("pairs", [20, 293, 1000])
def test_pairs_are_shared_out_by_the_shares(pairs):
    wanted = [2 * pairs * share for share in SHARES.values()]
    assert np.abs(np.subtract(sizes(assign(np.repeat(np.arange(pairs), 2))), wanted)).max() <= 4


def test_every_stratum_gets_its_share_in_every_split():
    rng = np.random.default_rng(0)
    strata = rng.choice(4, 2000, p=[0.7, 0.2, 0.08, 0.02])
    splits = assign(np.arange(2000), strata)
    for stratum in range(4):
        total = (strata == stratum).sum()
        found = np.bincount(splits[strata == stratum], minlength=4) / total
        assert np.abs(found - list(SHARES.values())).max() <= 2 / total


def test_a_large_group_goes_where_it_fits():
    groups = [0] * 500 + list(range(1, 501))
    splits = assign(groups)
    assert splits[0] == SPLITS.index("train")
    assert np.abs(np.subtract(sizes(splits), [600, 100, 150, 150])).max() <= 2


def test_the_order_of_the_rows_changes_nothing():
    groups = np.asarray([random.Random(1).randrange(60) for _ in range(300)])
    strata = groups % 3
    order = np.random.default_rng(0).permutation(300)
    assert (assign(groups[order], strata[order]) == assign(groups, strata)[order]).all()


def test_another_seed_gives_another_split():
    groups = np.repeat(np.arange(50), 2)
    assert (assign(groups, seed=0) != assign(groups, seed=1)).any()


def test_a_group_only_goes_where_its_source_says():
    groups = np.arange(300)
    masks = np.where(groups < 100, TEST, np.where(groups < 200, VALIDATION_OR_CALIBRATION, mask_of(["train"])))
    splits = assign(groups, masks=masks)
    assert set(splits[:100]) == {SPLITS.index("test")}
    assert sizes(splits[100:200]) == [0, 40, 60, 0]  # 0.1 to 0.15
    assert set(splits[200:]) == {SPLITS.index("train")}


def test_a_group_torn_between_training_and_test_goes_to_the_test():
    splits = assign([0, 0, 1], masks=[mask_of(["train"]), TEST, ANY])
    assert splits[:2].tolist() == [SPLITS.index("test")] * 2


def test_free_groups_are_shared_out_by_themselves():
    groups = np.arange(200)
    masks = np.where(groups < 100, TEST, ANY)
    assert sizes(assign(groups, masks=masks)[100:]) == [60, 10, 15, 15]


# Near duplicates


def joined(groups, pairs, masks=None):
    groups = np.asarray(groups, np.int64)
    masks = np.full_like(groups, ANY) if masks is None else np.asarray(masks, np.int64)
    return join_groups(groups, masks, clusters_of(len(groups), pairs)).tolist()


def clusters_of(count, pairs):
    return clusters(count, np.asarray(pairs, np.int64).reshape(-1, 2))


def test_groups_with_near_duplicates_become_one():
    groups = list(range(400))
    found = joined(groups, [(0, 1), (1, 2), (7, 9)])
    assert found[:3] == [0, 0, 0]
    assert (found[7], found[9]) == (7, 7)
    assert len(set(found)) == 400 - 3


def test_a_crowd_does_not_swallow_the_corpus():
    found = joined(range(1000), [(i, i + 1) for i in range(999)])
    assert np.unique(found, return_counts=True)[1].max() <= MAX_JOINED_SHARE * 1000


def test_groups_that_no_split_may_hold_together_are_not_joined():
    masks = [mask_of(["train"]), TEST, *[ANY] * 98]
    assert joined(range(100), [(0, 1)], masks)[:2] == [0, 1]


def test_a_joined_group_may_go_where_all_of_its_rows_may():
    masks = np.full(400, ANY)
    masks[1], masks[2] = mask_of(["train"]), TEST
    found = joined(range(400), [(0, 1), (0, 2)], masks)
    assert (found[0], found[1]) == (0, 0)
    assert found[2] == 2


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 49)), max_size=80), st.integers(0, 5))
def test_no_near_duplicate_stays_in_two_splits(pairs, seed):
    found = clusters_of(50, pairs)
    groups = np.arange(50) // 2
    masks = np.full(50, ANY)
    codes = join_groups(groups, masks, found)
    splits = assign_splits(codes, names(25), np.zeros(50, np.int64), masks, SHARES, seed)
    gone, stay = crossing(splits, found)
    stays = ~np.isin(np.arange(50), gone)
    assert stays[stay].all()
    assert all(len(set(splits[stays & (found == code)])) <= 1 for code in found)


def test_of_two_that_cross_the_one_nearest_to_the_test_stays():
    splits = np.asarray([0, 3, 1, 1, 2, 3])
    gone, stay = crossing(splits, clusters_of(6, [(0, 1), (2, 3), (4, 2)]))
    assert dict(zip(gone.tolist(), stay.tolist(), strict=True)) == {0: 1, 2: 4, 3: 4}


# Classes and order


def test_a_split_without_a_class_is_named_with_its_counts():
    with pytest.raises(CorpusError) as refused:
        require_both_classes(np.asarray([0, 1, 0, 0], np.int8), np.asarray([0, 0, 1, 1]))
    assert str(refused.value) == (
        "split 'validation' has 2 human and 0 AI texts: expected both classes in every split. "
        "Add texts or groups of the missing class, or give the split a larger share in corpus.split"
    )


def test_both_classes_in_every_split_pass():
    require_both_classes(np.tile(np.asarray([0, 1], np.int8), 4), np.repeat(np.arange(4), 2))


def test_the_order_is_drawn_from_the_seed_and_the_name():
    keys = {shuffle_key(seed, name) for seed in (0, 1) for name in ("a", "b", "\ud800")}
    assert len(keys) == 6
    assert all(0 <= key < 2**64 for key in keys)
