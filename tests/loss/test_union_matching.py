"""The vote over the matchings of all outputs."""

from collections import Counter

import numpy as np
import pytest

from deim.loss.matcher import Pairs, vote_union

Triple = tuple[int, int, int]


def pairs(*triples: Triple) -> Pairs:
    """(image, query, box) each."""
    return np.array(triples, dtype=np.int64).reshape(-1, 3).T


def triples(actual: Pairs) -> list[Triple]:
    return [tuple(int(v) for v in column) for column in actual.T]


def plain_vote(matchings: list[Pairs]) -> list[Triple]:
    """Count, sort by votes and then by position, keep the first pair of each query."""
    votes = Counter(triple for matching in matchings for triple in triples(matching))
    chosen: dict[tuple[int, int], Triple] = {}
    for triple, _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
        chosen.setdefault(triple[:2], triple)
    return sorted(chosen.values())


def random_matchings(seed: int, *, num_outputs: int = 6, counts: tuple[int, ...] = (4, 0, 3)) -> list[Pairs]:
    """One-to-one matchings that agree in part."""
    rng = np.random.default_rng(seed)
    matchings = []
    for _ in range(num_outputs):
        actual = []
        for image, count in enumerate(counts):
            start = sum(counts[:image])
            queries = rng.choice(count + 3, size=count, replace=False)
            actual += [(image, int(q), start + t) for t, q in enumerate(queries)]
        matchings.append(pairs(*actual))
    return matchings


@pytest.mark.parametrize("ties", ["first", "reference"])
def test_no_pairs_give_no_pairs(ties):
    union = vote_union([pairs(), pairs()], ties=ties)
    assert union.shape == (3, 0)
    assert union.dtype == np.int64


@pytest.mark.parametrize("ties", ["first", "reference"])
def test_equal_matchings_stay_as_they_are(ties):
    matching = pairs((0, 2, 1), (0, 5, 0), (1, 2, 3))
    assert triples(vote_union([matching] * 3, ties=ties)) == triples(matching)


@pytest.mark.parametrize("ties", ["first", "reference"])
def test_the_majority_decides_which_box_a_query_gets(ties):
    union = vote_union([pairs((0, 7, 1)), pairs((0, 7, 0)), pairs((0, 7, 1))], ties=ties)
    assert triples(union) == [(0, 7, 1)]


def test_equal_votes_go_to_the_box_that_comes_first():
    assert triples(vote_union([pairs((0, 7, 1)), pairs((0, 7, 0))])) == [(0, 7, 0)]


@pytest.mark.parametrize("ties", ["first", "reference"])
def test_one_box_may_own_several_queries(ties):
    union = vote_union([pairs((0, 3, 0)), pairs((0, 1, 0)), pairs((0, 2, 0))], ties=ties)
    assert triples(union) == [(0, 1, 0), (0, 2, 0), (0, 3, 0)]


def test_the_same_query_of_two_images_is_two_queries():
    union = vote_union([pairs((0, 4, 0), (1, 4, 1)), pairs((0, 4, 0), (1, 4, 2)), pairs((1, 4, 2))])
    assert triples(union) == [(0, 4, 0), (1, 4, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_plain_count_and_sort(seed):
    matchings = random_matchings(seed)
    assert triples(vote_union(matchings)) == plain_vote(matchings)


@pytest.mark.parametrize("ties", ["first", "reference"])
@pytest.mark.parametrize("seed", range(5))
def test_every_matched_query_gets_one_of_its_boxes_with_most_votes(ties, seed):
    matchings = random_matchings(seed, counts=(14, 2))
    union = triples(vote_union(matchings, ties=ties))
    votes = Counter(triple for matching in matchings for triple in triples(matching))
    queries = [triple[:2] for triple in union]
    assert queries == sorted({triple[:2] for triple in votes})
    for triple in union:
        assert votes[triple] == max(count for other, count in votes.items() if other[:2] == triple[:2])


@pytest.mark.parametrize("ties", ["first", "reference"])
def test_order_of_the_outputs_does_not_matter(ties):
    matchings = random_matchings(3, counts=(14, 2))
    forwards, backwards = vote_union(matchings, ties=ties), vote_union(matchings[::-1], ties=ties)
    assert (forwards == backwards).all()
