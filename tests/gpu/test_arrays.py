"""Arrays on a GPU, and other libraries' arrays on the host: taken where they lie, filled there."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.foreign import Dlpack, Interface, place
from tests.gpu.shim_device import ShimDevice, ShimFault, build
from tests.gpu.test_identity import bits_of, sample
from tests.support.strategies import DTYPES, properties

import quiver_kernels as qk
from quiver_kernels import dispatch
from quiver_kernels.gpu import passes, sources
from quiver_kernels.gpu.arrays import DeviceArray
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Buffer
from quiver_kernels.lanes import Lane

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LENDERS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "dlpack": Dlpack,
    "older dlpack": lambda array: Dlpack(array, versioned=False),
    "managed dlpack": lambda array: Dlpack(array, kind=13),
    "interface": Interface,
}


@pytest.fixture
def card(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShimDevice]:
    """The one GPU of this process."""
    device = ShimDevice(library)
    lanes = (Lane(0, GpuBackend(device)),)
    monkeypatch.setattr(dispatch, "_lanes", lambda: lanes)
    return device


def lendable(dtype: str, lender: str) -> bool:
    """The interface has no name for bfloat16."""
    return (dtype, lender) != ("bfloat16", "interface")


@pytest.mark.parametrize("lender", LENDERS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", ["uniform", "approx", "exact"])
def test_an_array_on_the_card_gives_the_cpus_bits(
    card: ShimDevice, dtype: str, lender: str, method: str
):
    if not lendable(dtype, lender):
        with pytest.raises(qk.InvalidInput, match=r"x must hold one of .*; got void16"):
            qk.quantize(Interface(place(card, sample(dtype, 8))))
        return
    x = sample(dtype, (41, 113))
    array = LENDERS[lender](place(card, x))
    chosen = {"bits": 3, "method": method, "seed": 9}

    ours, theirs = (qk.quantize(one, **chosen) for one in (array, x))

    assert (ours.device, theirs.device) == ("gpu", "cpu")
    assert bits_of(ours) == bits_of(theirs)


@pytest.mark.parametrize(
    "chosen", [{"block_size": 60}, {"method": "simba"}, {"levels": [-9, 0, 9]}]
)
def test_every_way_to_quantize_takes_them(card: ShimDevice, chosen: dict[str, Any]):
    x = sample("float32", 500)
    ours, theirs = (qk.quantize(one, seed=1, **chosen) for one in (Dlpack(place(card, x)), x))

    assert bits_of(ours) == bits_of(theirs)


def test_weights_of_the_host_go_with_them(card: ShimDevice):
    x, weights = sample("float32", 500), np.arange(500.0)
    array = Dlpack(place(card, x))

    assert bits_of(qk.quantize(array, seed=1, weights=weights)) == bits_of(
        qk.quantize(x, seed=1, weights=weights)
    )
    levels = qk.optimal_levels(array, 5, weights=weights)
    assert levels.tobytes() == qk.optimal_levels(x, 5, weights=weights).tobytes()
    assert qk.expected_mse(array, levels, weights) == qk.expected_mse(x, levels, weights)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("size", [1, 700, 2**18 + 700])
def test_levels_and_errors_are_the_cpus(card: ShimDevice, dtype: str, size: int):
    x = sample(dtype, size)
    array = Dlpack(place(card, x))
    levels = qk.optimal_levels(array, 6, "uniform")

    assert levels.tobytes() == qk.optimal_levels(x, 6, "uniform").tobytes()
    assert qk.expected_mse(array, levels) == qk.expected_mse(x, levels)


def test_values_stay_on_the_card(card: ShimDevice, monkeypatch: pytest.MonkeyPatch):
    """Levels, codes and what levels are found from come down, no vector; nothing goes up."""
    x = sample("float32", 200_000)
    array = Dlpack(place(card, x))
    moved = {"down": 0, "up": 0}
    download, upload = card.download, card.upload

    def counted_download(buffer: Buffer, out: NDArray[Any]) -> None:
        moved["down"] += out.nbytes
        download(buffer, out)

    def counted_upload(host: NDArray[Any], each: Any = None) -> Buffer:
        moved["up"] += host.nbytes
        return upload(host, each)

    monkeypatch.setattr(card, "download", counted_download)
    monkeypatch.setattr(card, "upload", counted_upload)
    monkeypatch.setattr(passes.Vector, "to_host", None)
    q = qk.quantize(array, bits=2, method="uniform", seed=1)

    assert q.codes.nbytes < moved["down"] < q.codes.nbytes + 40_000
    assert moved["up"] < 10_000
    qk.quantize(array, bits=2, method="approx", seed=1)
    # The count sees a vector that goes up and comes down.
    qk.quantize(x, bits=2, method="uniform", seed=1, device="gpu")
    assert moved["up"] > x.nbytes


# -- layouts -----------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "transposed": lambda x: x.transpose(2, 0, 1),
    "every third": lambda x: x[::2, ::3],
    "backwards": lambda x: x[::-1, :, ::-1],
    "one column": lambda x: x[:, 1:2, 2],
    "repeated": lambda x: np.broadcast_to(x[:, :1, :], x.shape),
    "later values": lambda x: x[1:],
    "one value": lambda x: x[3:4, 2, 1].reshape(()),
    "odd begin": lambda x: x.reshape(-1)[1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_any_strides(card: ShimDevice, dtype: str, view: str):
    x = sample(dtype, (6, 7, 5))
    seen = VIEWS[view](x)
    for lend in (Dlpack, Interface):
        if lend is Interface and dtype == "bfloat16":
            continue
        array = lend(VIEWS[view](place(card, x)))
        ours, theirs = (qk.quantize(one, seed=4) for one in (array, seen.copy()))
        assert bits_of(ours) == bits_of(theirs)


@properties
@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([np.uint16, np.uint32, np.uint64]),
)
def test_any_view_is_gathered_in_order(library: Path, shape: list[int], drawn: Any, kind: Any):
    device = ShimDevice(library)
    x = np.arange(5 ** len(shape), dtype=kind).reshape([5] * len(shape))
    axes = drawn.sample(range(len(shape)), len(shape))
    cut = (*(slice(None, None, drawn.choice([1, -1, 2, -3])) for _ in shape), ...)
    data = place(device, x)
    seen = data[cut].transpose(axes)
    name = {2: "float16", 4: "float32", 8: "float64"}[x.itemsize]
    lent = DeviceArray(Interface(seen.view(name)), "x", None).open(device)
    vector = passes.borrowed(device, lent)

    assert (
        vector.to_host(device).tobytes() == np.ascontiguousarray(x[cut].transpose(axes)).tobytes()
    )


def test_a_gather_one_too_far_is_found(libraries: Path):
    text = sources.text("gather.cu")
    assert text.count("i < n;") == 1
    gather = {"gather": sources.KERNELS["gather"]}
    device = ShimDevice(build(libraries, gather, {"gather.cu": text.replace("i < n;", "i <= n;")}))
    x = place(device, np.arange(1024.0))[::-1]

    with pytest.raises(ShimFault, match="gather_64: memory"):
        passes.borrowed(device, DeviceArray(Dlpack(x), "x", 0).open(device))


# -- streams and memory ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "waited"),
    [
        (lambda x: Interface(x, stream=7), [7]),
        (lambda x: Interface(x, stream=None), []),
        (lambda x: Interface(x, version=2), [1]),
    ],
)
def test_what_the_owner_has_still_to_do_is_waited_for(
    card: ShimDevice, array: Callable[[NDArray[Any]], Any], waited: list[int]
):
    x = place(card, sample("float32", 10))
    qk.quantize(array(x))

    assert card.waited_for == waited
    lender = Dlpack(x)
    qk.quantize(lender)
    qk.dequantize(qk.quantize(lender), out=lender)
    # Its owner is told which stream will read or write.
    assert lender.streams == [card.stream] * 3


def test_borrowed_memory_is_given_back(card: ShimDevice):
    x = place(card, sample("float32", 1000))
    before = sys.getrefcount(x)
    for view in (x, x[::2]):
        qk.quantize(Dlpack(view))
    with pytest.raises(qk.InvalidInput):
        qk.dequantize(qk.quantize(x[:3].copy()), out=Dlpack(x))
    del view

    assert sys.getrefcount(x) == before


# -- filling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lender", LENDERS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("chosen", [{}, {"block_size": 33}, {"method": "simba"}])
def test_an_array_on_the_card_is_filled(
    card: ShimDevice, dtype: str, lender: str, chosen: dict[str, Any]
):
    if not lendable(dtype, lender):
        return
    x = sample(dtype, (31, 30))
    q, other = (qk.quantize(one, bits=2, seed=2, **chosen) for one in (x, x[::-1]))
    out = LENDERS[lender](place(card, np.zeros_like(x)))

    assert qk.dequantize(q, out=out) is out
    assert out.array.tobytes() == qk.dequantize(q).tobytes()
    assert qk.aggregate([q, other], [1.0, 3.0], out=out) is out
    assert out.array.tobytes() == qk.aggregate([q, other], [1.0, 3.0]).tobytes()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("lend", [lambda x: x, lambda x: Dlpack(x, kind=1)])
def test_an_array_on_the_host_is_filled(dtype: str, lend: Callable[[NDArray[Any]], Any]):
    x = sample(dtype, (31, 30))
    q, other = qk.quantize(x, bits=2, seed=2), qk.quantize(x, bits=2, seed=3, method="simba")
    memory = np.zeros_like(x)
    out = lend(memory)

    for one in (q, other):
        assert qk.dequantize(one, out=out) is out
        assert memory.tobytes() == qk.dequantize(one).tobytes()
    for backend in (dispatch.load("cpu"), dispatch.load("reference")):
        assert backend.dequantize(q, memory) is memory
        assert memory.tobytes() == qk.dequantize(q).tobytes()
    assert qk.aggregate([q, other], out=out) is out
    assert memory.tobytes() == qk.aggregate([q, other]).tobytes()


def test_the_gpu_fills_an_array_of_the_host(card: ShimDevice):
    q = qk.quantize(sample("bfloat16", (4, 50)), bits=3, seed=1)
    gpu = GpuBackend(card)
    out = np.zeros((4, 50), BFLOAT16)

    assert gpu.dequantize(q, out) is out
    assert out.tobytes() == qk.dequantize(q).tobytes()
    assert gpu.aggregate([q, q], None, out) is out
    assert out.tobytes() == qk.aggregate([q, q]).tobytes()


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = array.view()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("where", ["host", "host by dlpack", "dlpack", "interface"])
@pytest.mark.parametrize(
    ("out", "code", "words"),
    [
        (lambda z: z((3, 5)), "shape_mismatch", r"out must have shape \[5, 3\]; got \[3, 5\]"),
        (lambda z: z(15), "shape_mismatch", r"out must have shape \[5, 3\]; got \[15\]"),
        (
            lambda z: z((5, 3), np.float64),
            "unsupported_dtype",
            "out must hold float32; got float64",
        ),
        (
            lambda z: z((5, 3), np.float16),
            "unsupported_dtype",
            "out must hold float32; got float16",
        ),
        (lambda z: z((3, 5)).T, "invalid_type", "contiguous in C order; it is strided"),
        (lambda z: z((5, 6))[:, ::2], "invalid_type", "contiguous in C order; it is strided"),
        (lambda z: read_only(z((5, 3))), "invalid_type", "must be writable.*; it is read-only"),
    ],
)
def test_what_does_not_fit_is_refused(
    card: ShimDevice, where: str, out: Callable[[Any], Any], code: str, words: str
):
    def zeros(shape: Any, dtype: Any = np.float32) -> NDArray[Any]:
        host = np.zeros(shape, dtype)
        return host if where.startswith("host") else place(card, host)

    lend = {
        "host": lambda array: array,
        "host by dlpack": lambda array: Dlpack(array, kind=1),
        "dlpack": Dlpack,
        "interface": Interface,
    }[where]
    target = lend(out(zeros))
    q = qk.quantize(sample("float32", (5, 3)), seed=1)
    for call in (lambda: qk.dequantize(q, out=target), lambda: qk.aggregate([q], out=target)):
        with pytest.raises(qk.InvalidInput, match=words) as caught:
            call()
        assert (caught.value.code, caught.value.field) == (code, "out")


def test_other_things_are_no_memory_to_fill():
    q = qk.quantize(sample("float32", 5), seed=1)
    for wrong in ([0.0] * 5, bytearray(20), 5):
        with pytest.raises(
            qk.InvalidInput, match=f"out must be an array; got {type(wrong).__name__}"
        ):
            qk.dequantize(q, out=wrong)
    with pytest.raises(qk.InvalidInput, match="out must hold float32; got >f4"):
        qk.dequantize(q, out=np.zeros(5, ">f4"))


def test_codes_beyond_the_table_are_refused_when_filling(card: ShimDevice):
    q = qk.quantize(sample("float32", 100), num_levels=5, seed=1)
    q.codes[17] = 0xFF
    for out in (np.empty(100, np.float32), Dlpack(place(card, np.zeros(100, np.float32)))):
        with pytest.raises(qk.InvalidInput, match="codes must be below num_levels=5; got 7"):
            qk.dequantize(q, out=out)


# -- the host's arrays -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*sorted(DTYPES), "int8", "int64", "uint16", "bool"])
@pytest.mark.parametrize("kind", [1, 3])
def test_arrays_of_the_host_by_dlpack(dtype: str, kind: int):
    x = (10 * sample("float64", (7, 9))).astype(DTYPES.get(dtype, dtype))
    for seen in (x, x.T, x[::-1, ::2], read_only(x)):
        ours, theirs = (qk.quantize(one, seed=1) for one in (Dlpack(seen, kind=kind), seen))
        assert bits_of(ours) == bits_of(theirs)
    assert qk.expected_mse(Dlpack(x, kind=kind), [-1e5, 1e5]) == qk.expected_mse(x, [-1e5, 1e5])
    count = sys.getrefcount(x)
    qk.optimal_levels(Dlpack(x, kind=kind), weights=Dlpack(np.ones((7, 9)), kind=kind))
    assert sys.getrefcount(x) == count


# -- what is refused ---------------------------------------------------------------------------


def raising(error: Exception) -> Any:
    """An array whose owner does not lend it."""

    class Refusing(Dlpack):
        def __dlpack__(self, **_: Any) -> object:
            raise error

    return Refusing(np.zeros(3))


class WithoutKeys:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3}


@pytest.mark.parametrize(
    ("array", "code", "words"),
    [
        (lambda x: Dlpack(x.astype(np.int32)), "unsupported_dtype", "bfloat16.*; got int32"),
        (lambda x: Dlpack(x.astype(complex)), "unsupported_dtype", "got complex128"),
        (lambda x: Dlpack(x > 0), "unsupported_dtype", "got bool"),
        (lambda x: Interface(x.astype(np.uint8)), "unsupported_dtype", "got uint8"),
        (
            lambda x: Interface(x.astype(">f8")),
            "unsupported_dtype",
            "float64 of another byte order",
        ),
        (lambda x: Dlpack(x.astype(complex), kind=1), "unsupported_dtype", "got complex128"),
        (lambda x: Dlpack(x, number=1), "device_unavailable", "data lie on GPU 1"),
        (lambda x: Dlpack(x, kind=10), "invalid_type", "memory of DLPack's kind 10"),
        (lambda _: raising(BufferError("it requires grad")), "invalid_type", "requires grad"),
        (lambda _: raising(TypeError("no such argument")), "invalid_type", "no such argument"),
        (lambda x: Interface(x, mask=Interface(x)), "invalid_type", "masks are not supported"),
        (lambda x: Interface(x, shape="ab"), "invalid_type", "interface is not usable: ValueError"),
        (lambda _: WithoutKeys(), "invalid_type", "interface is not usable: KeyError: 'data'"),
        (lambda x: Interface(x, data=(x.ctypes.data + 1, False)), "invalid_type", "odd addresses"),
        (lambda x: Dlpack(x[:0]), "empty_vector", "at least one value; got none"),
        (lambda x: Interface(x[:0]), "empty_vector", "at least one value; got none"),
        (lambda x: Dlpack(x * np.nan), "non_finite", "must be finite; got nan at index 0"),
    ],
)
def test_what_is_no_usable_array_is_refused_in_words(
    card: ShimDevice, array: Callable[[NDArray[Any]], Any], code: str, words: str
):
    given = array(place(card, np.arange(8.0)))
    for call in (qk.quantize, qk.optimal_levels, lambda x: qk.expected_mse(x, [-9.0, 9.0])):
        with pytest.raises((qk.InvalidInput, qk.BackendUnavailable), match=words) as caught:
            call(given)
        assert caught.value.code == code


def test_a_capsule_with_something_else_is_refused(card: ShimDevice):
    class Strange(Dlpack):
        def __dlpack__(self, **_: Any) -> object:
            return dt.datetime_CAPI

    with pytest.raises(qk.InvalidInput, match="its DLPack capsule holds no tensor"):
        qk.quantize(Strange(np.zeros(3)))


def test_the_cpu_is_not_asked_for_what_lies_on_a_card(card: ShimDevice):
    x = Dlpack(place(card, np.arange(8.0)))
    for call in (qk.quantize, qk.optimal_levels):
        assert call(x, device="gpu") is not None
        with pytest.raises(qk.InvalidInput, match="device must be auto or gpu for data on a GPU"):
            call(x, device="cpu")


def test_what_takes_arrays_of_the_host_says_so(card: ShimDevice):
    x = Dlpack(place(card, np.arange(8.0)))
    with pytest.raises(qk.InvalidInput, match="x must lie in memory of the host here"):
        qk.sign_quantize(x)
    with pytest.raises(qk.InvalidInput, match="weights must lie in memory of the host here"):
        qk.quantize(x, weights=x)
    with pytest.raises(qk.InvalidInput, match="levels must lie in memory of the host here"):
        qk.expected_mse(x, x)


@pytest.mark.parametrize("lend", [Dlpack, Interface])
def test_without_a_gpus_backend_it_is_unavailable(
    lend: Callable[[NDArray[Any]], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dispatch, "_probe_gpu", lambda: "device gpu needs CuPy")
    x = lend(np.arange(8.0))
    q = qk.quantize(np.arange(8.0), seed=1)
    for call in (
        lambda: qk.quantize(x),
        lambda: qk.optimal_levels(x),
        lambda: qk.expected_mse(x, [-9.0, 9.0]),
        lambda: qk.dequantize(q, out=x),
        lambda: qk.aggregate([q], out=x),
    ):
        with pytest.raises(qk.BackendUnavailable, match="device gpu needs CuPy"):
            call()
