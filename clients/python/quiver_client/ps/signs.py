"""The sign quantizer in a client's place: 1 bit per value for trees with error feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from quiver_client._core import as_client_errors, as_tensor
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sign import sign_quantize


class Signs:
    """Quantizes by `quiver_kernels.sign_quantize`, in this process and without Numba.

    To be given as ``client`` to `compress` and `ErrorFeedback.compress`. Of the policy it obeys
    which leaves are raw, packed and cut, `outliers` and `block_size`; bits and methods mean
    nothing. Signs are biased: use them with error feedback only.
    """

    def quantize_many(
        self,
        vectors: Sequence[ArrayLike],
        *,
        per_vector: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[QuantizedVector]:
        """The message of each vector; of `per_vector` only ``block_size`` counts."""
        options = per_vector or {}
        with as_client_errors():
            return [
                sign_quantize(as_tensor(x, "x"), block_size=options.get(i, {}).get("block_size"))
                for i, x in enumerate(vectors)
            ]
