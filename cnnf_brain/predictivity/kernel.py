"""K = X Xᵀ in the three forms in which it is taken: K itself, X where features are few, or either as a tensor on a device.

An array that is not square holds X (n_images, n_features), with fewer columns than rows. Then K V is X (Xᵀ V), and K is never
made. A tensor stays on its device, in float64: what is as large as K is computed there, all that is smaller by NumPy. So the
methods are written once; torch is known here by its tensors alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from cnnf_brain.types import Array

EPS = float(np.finfo(np.float64).eps)
FLOAT32 = 10 * float(
    np.finfo(np.float32).eps
)  # rounding of a K that is summed from float32 products: up to its norm times this


def namespace(array: Any) -> Any:
    """numpy or torch: the library of an array."""
    return importlib.import_module(type(array).__module__.split(".")[0])


def host(values: Any) -> Array:
    """An array or a tensor as a NumPy array; an array is not copied."""
    found: Array = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return found


def like(values: Array, other: Any) -> Any:
    """A NumPy array where ``other`` is: as it is, or as a tensor on the device of ``other``."""
    return values if isinstance(other, np.ndarray) else other.new_tensor(values)


def is_factor(gram: Array) -> bool:
    """Whether an array is X in place of K."""
    return bool(gram.shape[0] != gram.shape[1])


def whole(gram: Array) -> Array:
    """K, made where X is given."""
    return gram @ gram.T if is_factor(gram) else gram


def of_rows(gram: Array, rows: Array) -> Array:
    """K or X of some of the images; the array itself where these are all in order."""
    if len(rows) == len(gram) and np.array_equal(rows, np.arange(len(gram))):
        return gram
    return gram[rows] if is_factor(gram) else gram[np.ix_(rows, rows)]


def norm_of(gram: Array) -> float:
    """The Frobenius norm of K; of X the trace of K, which is larger and takes no product."""
    norm = float(namespace(gram).linalg.norm(gram))
    return norm**2 if is_factor(gram) else norm


@dataclass(frozen=True)
class GramOperator:
    """K as a linear map: ``times(V)`` is V K for V (k, n_rows), ``block(rows)`` is K[rows][:, rows].

    ``rounding`` is the size of K's own rounding.
    """

    times: Callable[[Array], Array]
    block: Callable[[Array], Array]
    rounding: float

    @classmethod
    def of(cls, gram: Array, rounding: float = 0.0) -> GramOperator:
        """Of K or X; ``rounding`` is relative to its norm, and float64's at least. Half of a K in memory is read for one vector."""
        gram = np.ascontiguousarray(gram) if isinstance(gram, np.ndarray) else gram

        def times(V: Array) -> Array:
            if is_factor(gram):
                return host(like(V, gram) @ gram @ gram.T)
            if len(V) == 1 and isinstance(gram, np.ndarray):
                return np.asarray(scipy.linalg.blas.dsymv(1.0, gram.T, V[0])[None])
            return host(like(V, gram) @ gram)

        return cls(times, lambda rows: host(whole(of_rows(gram, rows))), max(rounding, len(gram) * EPS) * norm_of(gram))


def check_gram(gram: Array) -> Array:
    """K or X in float64; a ValueError where it is neither by its shape, not finite, or K is not symmetric."""
    gram = gram.double() if namespace(gram).__name__ == "torch" else np.asarray(gram, dtype=np.float64)  # type: ignore[attr-defined]
    if gram.ndim != 2 or gram.shape[0] < gram.shape[1]:
        raise ValueError(
            f"the Gram X Xᵀ has shape {tuple(gram.shape)}; expected (n_images, n_images), or features X with fewer columns than "
            "rows"
        )
    norm = float(namespace(gram).linalg.norm(gram))
    if not np.isfinite(norm):
        raise ValueError("the Gram X Xᵀ holds NaN or infinity; the features do, or float32 overflowed")
    if is_factor(gram):
        return gram
    if asymmetry(gram) > 1e-5 * norm:
        raise ValueError("the Gram is not symmetric, so it is no X Xᵀ; features belong into PLSRegression")
    return gram


def asymmetry(square: Array) -> float:
    """The norm of (K - Kᵀ) v of a random vector v: any asymmetry shows, and K - Kᵀ would cost a copy."""
    probe = like(np.random.default_rng(0).standard_normal(len(square)), square)
    return float(namespace(square).linalg.norm(probe @ square - square @ probe))


def centred_gram(gram: Array) -> Array:
    """K, or X, of features whose mean over images is taken off; a copy."""
    means = gram.mean(axis=0)
    centred: Array = gram - means
    if not is_factor(gram):
        centred -= means[:, None]
        centred += means.mean()
    return centred


def mean_eigenvalue(gram: Array) -> float:
    """Of the centred K; 0 where all features are constant."""
    n = len(gram)
    if is_factor(gram):
        trace = norm_of(centred_gram(gram))
    else:
        trace = float(gram.diagonal().sum() - n * gram.mean())
    return trace / n if trace > n * EPS * norm_of(gram) else 0.0


def participation_ratio(gram: Array) -> float:
    """The effective dimension of features: (Σ λ)² / Σ λ² over the eigenvalues λ of their centred K.

    d directions of equal variance over the images give d. It is at most n_images - 1; NaN where all features are constant.
    ``gram``: K (n_images, n_images), or X with fewer columns than rows.
    """
    n, total = len(gram), len(gram) * mean_eigenvalue(gram)
    if is_factor(gram):
        centred = centred_gram(gram)
        squares = float(namespace(gram).linalg.norm(centred.T @ centred)) ** 2
    else:
        means = gram.mean(axis=0)
        squares = norm_of(gram) ** 2 - float(2 * n * means @ means - (n * means.mean()) ** 2)
    return total**2 / squares if total > 0 else float("nan")


def truncate_gram(gram: Array, n: int) -> Array:
    """The Gram (n_images, n_images) of the first n principal components of the features, for ``cross_predict``.

    Brain-Score reduces features so (n = 1000) for its choice of layers, on a basis fitted to other images (ImageNet
    validation). Here the basis is fitted to the images of ``gram`` themselves, **the test images included** (their
    features, not their responses): an option of this package, not Brain-Score's procedure. With n >= n_images - 1
    nothing is lost. Of X the components (n_images, n) themselves are returned. A ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"PCA needs at least one component, got {n}; to keep all of them leave it out")
    centred = centred_gram(check_gram(gram))
    rows = len(centred)
    if n >= min(rows - 1, centred.shape[1]):
        return centred
    if is_factor(centred):
        left, sizes, _ = scipy.linalg.svd(centred, full_matrices=False)
        components: Array = left[:, :n] * sizes[:n]
        return components
    variances, scores = scipy.linalg.eigh(centred, subset_by_index=(rows - n, rows - 1))
    scores *= np.sqrt(np.maximum(variances, 0))
    kept: Array = scores @ scores.T
    return kept


def eigen_of_features(features: Array) -> tuple[Array, Array]:
    """U and λ of centred features; the constant vector, if it is among them, has a λ of 0."""
    vectors, sizes, _ = namespace(features).linalg.svd(features, full_matrices=False)
    return vectors, host(sizes) ** 2


def eigen_of_gram(gram: Array, size: float) -> tuple[Array, Array]:
    """U and λ of a centred K with the mean eigenvalue ``size``, which is overwritten; without the constant vector."""
    gram += 2 * (size or 1.0 / len(gram))  # makes the constant vector the last one, twice the sum of all others and alone
    if isinstance(gram, np.ndarray):
        values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    else:
        values, vectors = namespace(gram).linalg.eigh(gram)
    return vectors[:, :-1], np.maximum(host(values)[:-1], 0.0)
