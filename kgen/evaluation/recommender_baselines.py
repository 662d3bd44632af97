"""Recommenders without a network: baselines for every network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import numpy as np
from scipy import sparse
from scipy.linalg import get_lapack_funcs
from sklearn.preprocessing import normalize

from kgen.evaluation.blocks import row_blocks
from kgen.evaluation.ranking import recommended, top_items

_BLOCK = 256  # rows of a dense block: with 21,000 items in float64 43 MB
# EASE inverts a matrix of items by items: up to so many in float64, which is 800 MB,
# above in float32, in which 21,000 items take 1.8 GB instead of 3.5.
_FLOAT64_ITEMS = 10_000


class Baseline:
    """Scores of all items for users by their histories.

    A subclass defines `_fit` and `_score`, which get checked matrices: csr_array in
    float32, without duplicates or stored zeros.

    Attributes:
        name: Kind and options, unique in a table.
    """

    name: str
    _num_items: int | None = None

    def fit(self, train: sparse.csr_array) -> Self:
        """Fit the interactions of training users.

        Args:
            train: Above 0, usually 1, for the items of a user: [training users, items].

        Returns:
            Itself.

        Raises:
            ValueError: If a value is below 0 or not finite, or the matrix is empty.
        """
        train = _checked_matrix(train, "train")
        if 0 in train.shape:
            raise ValueError(
                "`train` must have at least one user and one item. Received: "
                f"shape={train.shape}"
            )
        self._fit(train)
        self._num_items = train.shape[1]
        return self

    def score(self, history: sparse.csr_array) -> np.ndarray:
        """Return the scores of all items, including the history's.

        Args:
            history: Items of each user, as in `fit`: [users, items].

        Returns:
            float32 [users, items].

        Raises:
            ValueError: Before `fit`, or for another number of items.
        """
        history = _checked_matrix(history, "history")
        if self._num_items is None:
            raise ValueError(f"Call `fit` before `score`. Received: {self.name}.")
        if history.shape[1] != self._num_items:
            raise ValueError(
                f"`history` must have the {self._num_items} items of `fit`. Received: "
                f"{history.shape[1]} items."
            )
        return self._score(history).astype(np.float32, copy=False)

    def _fit(self, train: sparse.csr_array) -> None:
        raise NotImplementedError

    def _score(self, history: sparse.csr_array) -> np.ndarray:
        raise NotImplementedError


class Popularity(Baseline):
    """The same scores for all users: the number of training users of each item."""

    name = "popularity"

    def _fit(self, train: sparse.csr_array) -> None:
        self._counts = np.bincount(train.indices, minlength=train.shape[1])

    def _score(self, history: sparse.csr_array) -> np.ndarray:
        return np.tile(self._counts.astype(np.float32), (history.shape[0], 1))


class ItemKNN(Baseline):
    """Item-based nearest neighbours by common users.

    The similarity of two items is the cosine of their columns in the training matrix,
    shrunk towards 0 for items with few users: x.y / (|x| |y| + shrinkage). The
    score of an item is the sum of its similarities to its nearest neighbours in the
    history. Memory: a block of 256 items by all, and the neighbours.

    Args:
        num_neighbors: Neighbours of each item, without the item itself.
        shrinkage: In users, at least 0. The defaults of both were the best for
            validation users of ML-100K; choose them by `choose`.

    Reference:
        Deshpande and Karypis, 2004, Item-Based Top-N Recommendation Algorithms (without
        their normalisation of similarities); the shrinkage as in Ferrari Dacrema et
        al., 2019, Are We Really Making Much Progress?
    """

    def __init__(self, *, num_neighbors: int = 100, shrinkage: float = 10.0):
        if num_neighbors < 1:
            raise ValueError(
                f"`num_neighbors` must be at least 1. Received: {num_neighbors=}"
            )
        if not 0 <= shrinkage < np.inf:
            raise ValueError(f"`shrinkage` must be at least 0. Received: {shrinkage=}")
        self.num_neighbors = num_neighbors
        self.shrinkage = shrinkage
        self.name = f"item KNN (neighbours {num_neighbors}, shrinkage {shrinkage:g})"

    def _fit(self, train: sparse.csr_array) -> None:
        train = train.astype(np.float64)
        norms = np.sqrt(train.power(2).sum(axis=0))
        blocks = []
        for block, products in _products(train):
            scales = np.outer(norms[block], norms) + self.shrinkage
            similarity = np.divide(
                products, scales, out=np.zeros_like(products), where=scales > 0
            )
            itself = sparse.eye_array(*products.shape, k=block.start, format="csr")
            nearest = top_items(similarity, itself, self.num_neighbors)
            rows, ranks = np.nonzero(nearest >= 0)
            columns = nearest[rows, ranks]
            values = similarity[rows, columns].astype(np.float32)
            blocks.append(
                sparse.csr_array((values, (rows, columns)), shape=products.shape)
            )
        similarities = sparse.vstack(blocks, format="csr")
        similarities.eliminate_zeros()
        self._weights = similarities.T.tocsr()  # [neighbour, item]

    def _score(self, history: sparse.csr_array) -> np.ndarray:
        return (history @ self._weights).toarray()


class EASE(Baseline):
    """Prediction of each item from all others by ridge regression in closed form.

    The weights B minimise |X - X B|^2 + l2 |B|^2 with a diagonal of zeros: with P =
    (X'X + l2 I)^-1 they are B_ij = -P_ij / P_jj. Memory: one matrix of items by items,
    inverted in place; in float64 up to 10,000 items and in float32 above. Time: the
    cube of the number of items.

    Args:
        l2: Strength of the penalty, above 0. The best value grows with the number of
            users and falls with the number of items: choose it by `choose`.

    Raises:
        ValueError: In `fit`, if `l2` is lost to rounding.

    Reference:
        Steck, 2019, Embarrassingly Shallow Autoencoders for Sparse Data, which takes
        500 for ML-20M.
    """

    def __init__(self, *, l2: float = 500.0):
        if not 0 < l2 < np.inf:
            raise ValueError(f"`l2` must be above 0. Received: {l2=}")
        self.l2 = l2
        self.name = f"EASE (l2 {l2:g})"

    def _fit(self, train: sparse.csr_array) -> None:
        num_items = train.shape[1]
        dtype = np.float64 if num_items <= _FLOAT64_ITEMS else np.float32
        matrix = np.empty((num_items, num_items), dtype)
        for block, products in _products(train.astype(dtype)):
            matrix[block] = products
        matrix[np.diag_indices(num_items)] += self.l2
        try:
            _invert_in_place(matrix)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"`l2` must be larger for these data. Received: l2={self.l2}, and a "
                "matrix of items by items that is not positive definite."
            ) from error
        matrix /= -np.diag(matrix)
        np.fill_diagonal(matrix, 0)
        self._weights = matrix.astype(np.float32, copy=False)

    def _score(self, history: sparse.csr_array) -> np.ndarray:
        return history @ self._weights


class ContentKNN(Baseline):
    """Nearest neighbours by features of items, which also scores items without users.

    Features are weighted by TF-IDF, the value times ln(items / items with the feature),
    and scaled to length 1 for each item. The score of an item is its mean cosine to the
    items of the history, weighted by the history's values. Training interactions are
    not used.

    Args:
        features: Of each item, such as 1 for each genre, or counts of words: [items,
            features], finite and at least 0.

    Raises:
        ValueError: On other features, and in `fit` for another number of items.

    Reference:
        Salton and Buckley, 1988, Term-Weighting Approaches in Automatic Text Retrieval;
        Lops et al., 2011, Content-based Recommender Systems: State of the Art.
    """

    name = "content KNN"

    def __init__(self, features: sparse.csr_array):
        self.features = _checked_matrix(features, "features")
        num_items, num_features = self.features.shape
        num_with = np.bincount(self.features.indices, minlength=num_features)
        rarity = np.log(num_items / np.maximum(num_with, 1))
        weighted = self.features @ sparse.diags_array(rarity)
        self._vectors = normalize(weighted)

    def _fit(self, train: sparse.csr_array) -> None:
        if train.shape[1] != self.features.shape[0]:
            raise ValueError(
                "`features` must have one row for each item of `train`. Received: "
                f"{self.features.shape[0]} rows for {train.shape[1]} items."
            )

    def _score(self, history: sparse.csr_array) -> np.ndarray:
        means = normalize(history.astype(np.float64), "l1") @ self._vectors
        return (means @ self._vectors.T).toarray()


def choose(
    baselines: Iterable[Baseline],
    train: sparse.csr_array,
    history: sparse.csr_array,
    targets: sparse.csr_array,
    measure: Callable[[np.ndarray, sparse.csr_array], np.ndarray],
    *,
    k: int = 100,
    candidates: np.ndarray | None = None,
) -> tuple[Baseline, dict[str, float]]:
    """Fit each baseline to training users, and choose the best for validation users.

    Choose options such as EASE's `l2` by it, and never on test users.

    Args:
        baselines: Candidates with different names. They are not changed: copies are
            fitted, of which two at most are in memory.
        train: Items of training users: [training users, items].
        history: Given items of validation users: [validation users, items].
        targets: Held-out items of validation users: [validation users, items].
        measure: A metric of `kgen.evaluation.ranking`, higher is better: from lists and
            targets to one number for each user.
        k: Length of the lists.
        candidates: Positions of the only items that are ranked. None: all.

    Returns:
        The best baseline, fitted (of equals, the first); and the means of all, by name.

    Raises:
        ValueError: Without a baseline or a user, on two baselines with one name, or on
            data that do not fit.
    """
    if not history.shape[0]:
        raise ValueError("There must be a validation user. Received: no history.")
    best = None
    reached: dict[str, float] = {}
    for baseline in baselines:
        if baseline.name in reached:
            raise ValueError(
                "Baselines must have different names. Received twice: "
                f"{baseline.name!r}"
            )
        fitted = copy.copy(baseline).fit(train)
        lists = recommended(fitted.score, history, k, candidates)
        reached[fitted.name] = float(measure(lists, targets).mean())
        if best is None or reached[fitted.name] > reached[best.name]:
            best = fitted
    if best is None:
        raise ValueError("There must be a baseline to choose. Received: none.")
    return best, reached


def _checked_matrix(matrix: sparse.csr_array, name: str) -> sparse.csr_array:
    """Return a copy in float32, without duplicates or stored zeros.

    Raises:
        ValueError: If a value is below 0 or not finite.
    """
    matrix = sparse.csr_array(matrix, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if not ((matrix.data >= 0) & (matrix.data < np.inf)).all():
        raise ValueError(
            f"The values of `{name}` must be finite and at least 0. Received: values "
            f"from {matrix.data.min()} to {matrix.data.max()}. Convert ratings by a "
            "threshold: 1 for a rating of at least 4."
        )
    return matrix


def _products(train: sparse.csr_array) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of items, and the products of their columns with all columns."""
    by_item = train.T.tocsr()
    for block in row_blocks(train.shape[1], _BLOCK):
        yield block, (by_item[block] @ train).toarray()


def _invert_in_place(matrix: np.ndarray) -> None:
    """Replace a symmetric, positive definite matrix by its inverse.

    `numpy.linalg.inv` needs the memory of four matrices, `scipy.linalg.cho_solve` of
    two.

    Raises:
        numpy.linalg.LinAlgError: If the matrix is not positive definite.
    """
    factorise, invert = get_lapack_funcs(("potrf", "potri"), (matrix,))
    # LAPACK stores columns contiguously: the transpose, which is the same matrix.
    factor, failed = factorise(matrix.T, lower=True, clean=False, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError("The matrix is not positive definite.")
    invert(factor, lower=True, overwrite_c=True)
    # LAPACK wrote only the triangle below the transpose's diagonal: mirror it.
    for block in row_blocks(len(matrix), _BLOCK):
        square = matrix[block, block]
        square[:] = np.triu(square) + np.triu(square, 1).T
        matrix[block.stop :, block] = matrix[block, block.stop :].T
