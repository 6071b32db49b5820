"""One matching for all outputs, by vote.

Source:
    Global optimal matching of D-FINE (arXiv:2410.13842), section 4.2.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deim.loss.matcher import Pairs


def vote_union(matchings: Sequence[Pairs], *, ties: Literal["first", "reference"] = "first") -> Pairs:
    """Join the matchings of all outputs so that each query has at most one box.

    A query that the outputs match differently gets the box that most of them chose. One box may have several
    queries.

    Args:
        matchings: Pairs of each output, over the same batch.
        ties: With equal votes, `first` takes the box that comes first in the batch. `reference`, for
            comparisons, takes what the official code takes: the order of a sort that is not stable above 16
            pairs an image and may change with the version of torch.

    Returns:
        The chosen pairs, by image, then query.
    """
    pairs, votes = np.unique(np.concatenate(matchings, axis=1), axis=1, return_counts=True)
    image, query, _ = pairs
    rank = _reference_rank(image, votes) if ties == "reference" else -votes
    ordered = pairs[:, np.lexsort((rank, query, image))]
    is_first = np.ones(ordered.shape[1], dtype=bool)
    is_first[1:] = (ordered[:2, 1:] != ordered[:2, :-1]).any(axis=0)
    return ordered[:, is_first]


def _reference_rank(image: NDArray[np.int64], votes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each pair in torch's default sort of its image's votes, highest first."""
    rank = np.empty_like(votes)
    for index in np.unique(image):
        places = np.flatnonzero(image == index)
        order = torch.argsort(torch.from_numpy(votes[places]), descending=True).numpy()
        rank[places[order]] = np.arange(len(places))
    return rank
