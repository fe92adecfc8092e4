"""Exact partial least squares (PLS) in sample space: all folds and all numbers of components at once.

Brain-Score regresses the responses of all sites on a layer's features by PLS2 with 25 components, centred and not
scaled. Every quantity that a prediction needs lies in the span of the training images, so the Gram K = X Xᵀ over
all images serves every fold and every number of components.

For one fold, with K and Y centred on its training rows, T the orthonormal scores so far and P = I - TTᵀ, the next
component of NIPALS (mode A, regression deflation: scikit-learn's PLSRegression run to convergence) is

    c   dominant eigenvector of S = Yᵀ P K P Y (responses x responses); with one response c = 1
    u = P Y c,    t = P K u / |P K u|,    τ = tᵀ Y,    prediction = mean(Y) + Σ t τ
    S becomes  S - τᵀb - bᵀτ + (tᵀKt) τᵀτ   with   b = (P K t)ᵀ Y

A held-out row goes through the same steps with the coefficients found on the training rows; its entry of t is then
what its features would give. So no row is copied: rows outside a training set weigh zero, and one multiplication
K [u₁ … u_S] serves all folds together.

Arrays have one row per *problem*: a fold, or, with one model per site, a site. T and U (problems, components, rows)
hold t and u, Q (problems, components, responses) holds τ, R is the upper triangular TᵀKU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import numpy as np
import scipy.linalg
from scipy.linalg.blas import dsyr2 as syr2
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from threadpoolctl import ThreadpoolController

from cnnf_brain.checks import is_constant
from cnnf_brain.predictivity.kernel import EPS, GramOperator, check_gram
from cnnf_brain.types import Array, Predictions, Split

FOLDS_AT_ONCE = 32  # bounds the memory where there are many folds (leave one out)
# S is computed anew where its trace has fallen by this factor: the updates leave rounding of the older, larger S.
STALE = 1e-4
# With more responses than this, S is multiplied by vectors (Lanczos) and not decomposed; with fewer, that takes longer.
LANCZOS = 256


def cross_predict(
    gram: Array,
    responses: Array,
    splits: Sequence[Split],
    n_components: int = 25,
    *,
    per_site: bool = False,
    last: bool = False,
    rounding: float = 0.0,
) -> Predictions:
    """Fit PLS on the training rows of every split and predict its test rows.

    Parameters
    ----------
    gram : (n_images, n_images) array
        K = X Xᵀ of the features X; any constant may have been taken off each feature. Or X itself, where it has fewer columns than
        rows: the numbers are the same. Or either as a torch tensor: then all that is as large as K is computed on its device.
    responses : (n_images, n_sites) array
    splits : sequence of Split
        Training and test rows must not overlap; rows in neither are not used.
    n_components : int
        The largest number of components, at most the number of training rows - 1.
    per_site : bool
        False: one model for all sites (PLS2, as Brain-Score). True: one model per site (PLS1, as the paper words it).
    last : bool
        Predict with all components alone, which takes ``n_components`` times less memory.
    rounding : float
        Of ``gram``, relative to its norm, where that is more than float64's: what is smaller is no component.

    Returns
    -------
    Predictions
        For 1 to n_components components; with ``last`` a single entry.
        Where the training rows carry fewer (``ranks``; with ``per_site`` the most that any
        site could use), the last prediction is repeated. A site that is constant over the training rows stays at that constant.

    Raises
    ------
    ValueError
        Shapes that do not match, NaN, a Gram that is not symmetric, features with more columns than rows, faulty splits,
        too many components.
    """
    K = GramOperator.of(check_gram(gram), rounding)
    responses = check_responses(responses, len(gram))
    check_splits(splits, len(responses), n_components)
    training = training_rows(splits, len(responses))
    values: list[Array] = []
    ranks: list[int] = []
    if per_site:
        for weights, split in zip(training, splits, strict=True):
            sites = fit_sites(K, responses, weights[None], n_components)
            values.append(sites.predict_sites(split.test, last=last))
            ranks.append(int(sites.ranks.max()))
            del sites  # before the next fold's, for memory
    else:
        for start in range(0, len(splits), FOLDS_AT_ONCE):
            some = slice(start, start + FOLDS_AT_ONCE)
            folds = fit_folds(K, responses, training[some], n_components)
            values += [folds.predict(fold, split.test, last=last) for fold, split in enumerate(splits[some])]
            ranks += [int(rank) for rank in folds.ranks]
            del folds  # before the next ones, for memory
    return Predictions(tuple(splits), tuple(values), tuple(ranks))


def training_rows(splits: Sequence[Split], n_rows: int) -> Array:
    """(n_splits, n_rows), 1 for the training rows of each split, else 0."""
    training = np.zeros((len(splits), n_rows))
    for weights, split in zip(training, splits, strict=True):
        weights[split.train] = 1.0
    return training


def fit_folds(K: GramOperator, responses: Array, training: Array, n_components: int) -> Components:
    """One model for all responses (PLS2) in each fold; ``training`` (n_folds, n_rows) is 1 for training rows, else 0."""
    means, live = means_and_live(responses, training)
    centre = means.mean(axis=0)
    Y, offsets = responses - centre, means - centre  # small numbers; each fold takes off its own offset
    growth = Components(K, training, means, n_components)

    def residual(fold: int) -> Array:  # P Y of one fold, (n_responses, n_rows)
        centred = (Y - offsets[fold]).T * live[fold][:, None]
        rest: Array = (centred - growth.Q[fold].T @ growth.T[fold]) * training[fold]
        return rest

    squares = (training @ Y**2 - growth.counts * offsets**2) * live
    floor = len(Y) * EPS * np.sqrt(squares.clip(0).sum(axis=1))
    S, fresh = _cross_products(K, Y, offsets, training, live)
    while growth.goes_on():
        for fold in np.flatnonzero(growth.alive & (np.array([np.trace(s) for s in S]) < STALE * fresh)):
            S[fold] = growth.cross_product(fold, residual(fold))
            fresh[fold] = np.trace(S[fold])
        c = _dominant(S) * live
        PYc = c @ Y.T - (c * offsets).sum(axis=1, keepdims=True)
        PYc -= np.matmul((growth.Q @ c[:, :, None]).transpose(0, 2, 1), growth.T)[:, 0]
        t = growth.add(PYc * training, floor)
        tau = growth.Q[:, growth.count - 1] = (t @ Y) * live
        rest, coefficients = growth.project(K.times(t))
        half = (rest * training) @ Y * live + coefficients[:, -1:] / 2 * tau
        with _one_thread():
            S = [syr2(-1.0, *pair, a=s, lower=1, overwrite_a=1) for s, *pair in zip(S, tau, half, strict=True)]
    return growth


def fit_sites(K: GramOperator, responses: Array, training: Array, n_components: int) -> Components:
    """One model per response (PLS1) in one fold, all side by side; ``training`` is (1, n_rows)."""
    means, live = means_and_live(responses, training)
    rest = ((responses - means[0]) * live[0]).T * training
    growth = Components(K, training, means.T, n_components)
    floor = training.shape[1] * EPS * np.linalg.norm(rest, axis=1)
    while growth.goes_on():
        t = growth.add(rest, floor)
        tau = growth.Q[:, growth.count - 1] = np.einsum("pn,pn->p", t, rest)[:, None]
        rest -= tau * t
    return growth


def _cross_products(K: GramOperator, Y: Array, offsets: Array, training: Array, live: Array) -> tuple[list[Array], Array]:
    """S of every fold before its first component (lower triangles, in Fortran's order), and the size of what they are made of.

    One product with K serves all folds. With K centred over all rows and D = Y - offset on the rows outside a training set,
    S = (Y - D)ᵀ K (Y - D) = YᵀKY - DᵀN - NᵀD, where N = KY - KD/2 on those rows.
    """
    means = K.times(np.full((1, len(Y)), 1 / len(Y)))[0]
    KY = K.times((Y - Y.mean(axis=0)).T)
    KY -= KY.mean(axis=1, keepdims=True)
    whole = np.asfortranarray(KY @ Y)
    S: list[Array] = []
    for offset, weights, varies in zip(offsets, training, live, strict=True):
        rows = np.flatnonzero(weights == 0)
        D = Y[rows] - offset
        block = K.block(rows) - means[rows] - means[rows, None] + means.mean()
        N = KY[:, rows] - (block @ D).T / 2
        s = scipy.linalg.blas.dsyr2k(-1.0, D.T, N, 1.0, whole, lower=1) if len(rows) else whole.copy(order="F")
        S.append(s * varies * varies[:, None])
    return S, np.full(len(S), np.trace(whole))


def _dominant(S: list[Array]) -> Array:
    """(folds, q): the eigenvector of each S of the largest eigenvalue."""
    start = np.random.default_rng(0).standard_normal(len(S[0]))  # not the last vector: the next may be orthogonal to it
    with _one_thread():
        return np.stack([_eigenvector(s, start) for s in S])


def _eigenvector(s: Array, start: Array) -> Array:
    """By ARPACK, to 1e-13, where it is quicker; s is decomposed where not, or where that takes too many products."""
    last, trace = len(s) - 1, np.trace(s)
    if last >= LANCZOS and trace > 0:  # ARPACK's tolerance is absolute for small numbers, so s is scaled
        times = LinearOperator(s.shape, lambda v: scipy.linalg.blas.dsymv(1 / trace, s, v, lower=1), dtype=s.dtype)
        with contextlib.suppress(ArpackError):
            return np.asarray(eigsh(times, 1, which="LA", v0=start, maxiter=len(s) // 20, tol=1e-12)[1][:, 0])
    return np.asarray(scipy.linalg.eigh(s, subset_by_index=(last, last), check_finite=False)[1][:, 0])


def _one_thread() -> contextlib.AbstractContextManager[object]:
    """For work with single S: two threads take longer at this size."""
    limit: contextlib.AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limit


_blas = functools.cache(ThreadpoolController)  # looking for the libraries takes 10 ms


class Components:
    """PLS components of several problems over the same rows, one more with each ``add`` and its entry of Q.

    T is not zero outside the training rows, U is. ``means`` (problems, n_responses); ``ranks`` (problems,): beyond them T, U, R
    and Q are zero. ``training``: of each problem, or (1, n_rows) of all.
    """

    def __init__(self, K: GramOperator, training: Array, means: Array, n_components: int) -> None:
        (n_problems, n_responses), n_rows = means.shape, training.shape[1]
        self.K, self.training, self.means = K, training, means
        self.counts = training.sum(axis=1, keepdims=True)
        self.T = np.zeros((n_problems, n_components, n_rows))
        self.U = np.zeros_like(self.T)
        self.R = np.zeros((n_problems, n_components, n_components))
        self.Q = np.zeros((n_problems, n_components, n_responses))
        self.ranks = np.zeros(n_problems, dtype=int)
        self.alive = np.ones(n_problems, dtype=bool)
        self.count = 0

    def goes_on(self) -> bool:
        return bool(self.alive.any()) and self.count < self.T.shape[1]

    def project(self, V: Array) -> tuple[Array, Array]:
        """Centre V (problems, n_rows) and take T off, with means and coefficients of the training rows; once more
        against rounding. Returns the coefficients (problems, count) as well."""
        T = self.T[:, : self.count]
        V = V - np.einsum("pn,pn->p", V, np.broadcast_to(self.training, V.shape))[:, None] / self.counts
        total = np.zeros((len(V), self.count))
        for _ in range(2):
            coefficients = np.matmul(T, (V * self.training)[:, :, None])[:, :, 0]
            V -= np.matmul(coefficients[:, None, :], T)[:, 0]
            total += coefficients
        return V, total

    def add(self, U: Array, floor: Array) -> Array:
        """t = P K u / |P K u| of every problem; returns it zero outside the training rows.

        A problem ends where u (below ``floor``) or P K u has fallen to rounding level: its rank is used up.
        """
        G, coefficients = self.project(self.K.times(U))
        size = np.linalg.norm(U, axis=1)
        length = np.linalg.norm(G * self.training, axis=1)
        self.alive &= (size > floor) & (length > self.K.rounding * size)
        alive = self.alive[:, None]
        new = self.count
        self.T[:, new] = np.where(alive, G / np.where(alive, length[:, None], 1.0), 0.0)
        self.U[:, new] = U * alive
        self.R[:, :new, new] = coefficients * alive
        self.R[:, new, new] = length * self.alive
        self.ranks += self.alive
        self.count += 1
        return self.T[:, new] * self.training

    def cross_product(self, problem: int, rest: Array) -> Array:
        """S = rest P K P restᵀ of one problem, for rest = P Y (n_responses, n_rows)."""
        T = self.T[problem, : self.count]
        weights = self.training[problem]
        product = self.K.times(rest) * weights
        product -= (product @ weights / self.counts[problem])[:, None] * weights
        for _ in range(2):
            product -= (product @ T.T) @ (T * weights)
        S = rest @ product.T
        symmetric: Array = (S + S.T) / 2
        return symmetric

    def predict(self, problem: int, rows: Array, *, last: bool = False) -> Array:
        """(n_components, len(rows), n_responses): one problem's predictions for 1, 2, ... components, or the last alone."""
        T, Q = self.T[problem][:, rows], self.Q[problem]
        if last:
            return np.asarray(T.T @ Q + self.means[problem])[None]
        predictions = np.empty((len(T), len(rows), Q.shape[1]))
        for before, now, t, q in zip([self.means[problem], *predictions[:-1]], predictions, T, Q, strict=True):
            np.multiply.outer(t, q, out=now)
            now += before
        return predictions

    def predict_sites(self, rows: Array, *, last: bool = False) -> Array:
        """The same of all problems, each a model of one site: (n_components, len(rows), n_sites)."""
        T, Q = self.T[:, :, rows], self.Q[:, :, 0]
        if last:
            return np.asarray(np.einsum("pcn,pc->np", T, Q) + self.means[:, 0])[None]
        steps = T.transpose(1, 2, 0) * Q.T[:, None, :]
        predictions: Array = np.cumsum(steps, axis=0, out=steps)
        predictions += self.means[:, 0]
        return predictions

    def dual_coefficients(self, problem: int) -> Array:
        """D (n_rows, n_responses) with all components: the centred prediction of a row k of K is k D."""
        rank = self.ranks[problem]
        inner = scipy.linalg.solve_triangular(self.R[problem, :rank, :rank], self.Q[problem, :rank])
        dual: Array = self.U[problem, :rank].T @ inner
        return dual


def check_splits(splits: Sequence[Split], n_rows: int, n_components: int) -> None:
    """A ValueError where ``splits`` do not fit n_rows rows, or cannot carry n_components components."""
    if n_components < 1:
        raise ValueError(f"n_components must be at least 1, got {n_components}")
    if len(splits) == 0:
        raise ValueError("no splits were given; crossval.make_splits makes them")
    for number, split in enumerate(splits):
        n_train, n_test = len(split.train), len(split.test)
        if n_train == 0 or n_test == 0:
            raise ValueError(f"split {number} has {n_train} training and {n_test} test images; it needs both")
        rows = np.concatenate([split.train, split.test])
        if rows.min() < 0 or rows.max() >= n_rows:
            raise ValueError(f"split {number} names rows {rows.min()} to {rows.max()} of {n_rows} images")
        if len(np.unique(rows)) < len(rows):
            raise ValueError(f"split {number} names an image twice, within or across training and test images")
        if n_components > n_train - 1:
            raise ValueError(
                f"{n_components} components cannot be fitted to the {n_train} training images of split {number}; "
                f"n_components must be at most {n_train - 1}, or more images are needed"
            )


def check_responses(responses: Array, n_rows: int) -> Array:
    """float64 responses (n_rows, n_sites); a ValueError for another shape and for NaN."""
    responses = np.asarray(responses, dtype=np.float64)
    if responses.ndim != 2 or len(responses) != n_rows or responses.shape[1] == 0:
        raise ValueError(
            f"responses have shape {responses.shape}; expected ({n_rows}, n_sites), one row for each image of the Gram"
        )
    bad = np.flatnonzero(~np.isfinite(responses).all(axis=0))
    if len(bad):
        raise ValueError(
            f"responses of {len(bad)} of {responses.shape[1]} sites hold NaN or infinity (the first: site {bad[0]}); "
            "leave these sites out"
        )
    return responses


def means_and_live(responses: Array, training: Array) -> tuple[Array, Array]:
    """Per fold: means (n_folds, n_responses) over the training rows, and 1 where a response varies there, else 0."""
    means, live = [], []
    for weights in training:
        rows = responses[weights > 0]
        varies = ~is_constant(rows)
        means.append(np.where(varies, rows.mean(axis=0), rows[0]))
        live.append(varies.astype(float))
    return np.array(means), np.array(live)
