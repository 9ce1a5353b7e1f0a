"""`quiver quantize` and `quiver dequantize`, as a shell runs them."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_client import LocalClient
from quiver_client.cli import app, errors
from quiver_client.cli.app import run
from quiver_client.files import model, open_source
from quiver_kernels import qvr

pytestmark = pytest.mark.faces

CHUNKS = ("--chunk-values", "1000", "--seed", "7")


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "a.weight": random.normal(size=(50, 100)).astype(np.float32),
        "a.bias": random.normal(size=20).astype(np.float32),
        "b.weight": random.normal(size=4500),
        "step": np.array(7, np.int64),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Any) -> Path:
    """The working folder, with a model in it and no service named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUIVER_URL", raising=False)
    np.savez("model.npz", **arrays)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def result(capsys: Any, *arguments: str) -> dict[str, Any]:
    """What a command that ends well gives as JSON."""
    assert run([*arguments, "--json"]) == errors.OK
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def failure(capsys: Any, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of a command that fails."""
    code = run(arguments)
    said = capsys.readouterr()
    assert said.out == ""
    line = said.err.splitlines()[-1]
    assert line.startswith("quiver: ")
    return code, line


# -- there and back --------------------------------------------------------------------------


def test_there_and_back(capsys: Any, arrays: Any, folder: Path):
    told = result(capsys, "quantize", "model.npz", *CHUNKS, "--bits-of", "b.*=6")
    assert told["target"] == "model.qvr"
    assert (told["tensors"], told["quantized"], told["chunks"]) == (4, 2, 5 + 1 + 5 + 1)
    assert told["bytes"] == Path("model.qvr").stat().st_size
    assert told["ratio"] == told["value_bytes"] / told["bytes"]

    back = result(capsys, "dequantize", "model.qvr", "back.npz")
    assert back["value_bytes"] == sum(array.nbytes for array in arrays.values())
    with np.load("back.npz") as found:
        assert sorted(found) == sorted(arrays)
        for name in ("a.bias", "step"):
            assert np.array_equal(found[name], arrays[name])
        for name, bits in (("a.weight", 4), ("b.weight", 6)):
            assert found[name].dtype == arrays[name].dtype
            error = ((found[name] - arrays[name]) ** 2).sum() / (arrays[name] ** 2).sum()
            assert 0.1 / 4**bits < error < 10 / 4**bits
    assert names(folder) == ["back.npz", "model.npz", "model.qvr"]


def test_one_tensor(capsys: Any, arrays: Any):
    run(["quantize", "model.npz", *CHUNKS])
    capsys.readouterr()
    assert result(capsys, "dequantize", "model.qvr", "-t", "step")["target"] == "model.npy"
    assert np.load("model.npy") == 7
    code, line = failure(capsys, "dequantize", "model.qvr", "-t", "bias", "-f")
    assert code == errors.FAILED
    assert "has no tensor 'bias'; it has 'a.weight'" in line


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_through_pipes(
    capfdbinary: Any, arrays: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run(["quantize", "model.npz", *CHUNKS, "-q"]) == 0
    capfdbinary.readouterr()
    pipe(monkeypatch, Path("model.npz").read_bytes())
    assert run(["quantize", "-", *CHUNKS]) == 0
    said = capfdbinary.readouterr()
    assert said.out == Path("model.qvr").read_bytes()
    assert b"-: 2 of 4 arrays quantized" in said.err
    pipe(monkeypatch, said.out)
    assert run(["dequantize", "-", "-", "-t", "a.bias"]) == 0
    Path("bias.npy").write_bytes(capfdbinary.readouterr().out)
    assert np.array_equal(np.load("bias.npy"), arrays["a.bias"])
    assert names(folder) == ["bias.npy", "model.npz", "model.qvr"]


def test_a_policy_from_a_file(capsys: Any):
    policy = {"bits": 2, "min_size": 0, "overrides": {"a.*": {"bits": 5}, "b.*": {"bits": 3}}}
    Path("policy.json").write_text(json.dumps(policy))
    run(["quantize", "model.npz", "--policy", "policy.json", "--bits-of", "a.b*=8"])
    with qk.qvr.open("model.qvr") as file:
        bits = {tensor.name: tensor.settings.get("bits") for tensor in file.header.tensors}
    assert bits == {"a.weight": 5, "a.bias": 8, "b.weight": 3, "step": None}
    run(["quantize", "model.npz", "-f", "--policy", "policy.json", "--keep", "*.weight"])
    with qk.qvr.open("model.qvr") as file:
        kept = [tensor.name for tensor in file.header.tensors if not tensor.quantized]
    assert kept == ["a.weight", "b.weight", "step"]
    capsys.readouterr()
    Path("policy.json").write_text('{"bit": 3}')
    assert "'bit'" in failure(capsys, "quantize", "model.npz", "-f", "--policy", "policy.json")[1]


def test_methods_and_entropy_coding(capsys: Any):
    options = ("-b", "6", "-m", "uniform", "--seed", "7")
    plain = result(capsys, "quantize", "model.npz", "plain.qvr", *options)
    coded = result(capsys, "quantize", "model.npz", "coded.qvr", *options, "--entropy")
    assert coded["bytes"] < plain["bytes"]
    assert run(["dequantize", "plain.qvr", "plain.npz"]) == 0
    assert run(["dequantize", "coded.qvr", "coded.npz"]) == 0
    with np.load("plain.npz") as one, np.load("coded.npz") as other:
        assert np.array_equal(one["a.weight"], other["a.weight"])
    capsys.readouterr()
    assert result(capsys, "quantize", "model.npz", "a.qvr", "-m", "approx", *CHUNKS)["bytes"] > 0
    code, line = failure(capsys, "quantize", "model.npz", "b.qvr", "-m", "best")
    assert code == errors.FAILED
    assert "method must be one of exact" in line


def test_a_service_makes_the_same_file(capsys: Any, live_server: str):
    run(["quantize", "model.npz", "here.qvr", *CHUNKS])
    run(["quantize", "model.npz", "there.qvr", *CHUNKS, "--server", live_server])
    capsys.readouterr()
    assert Path("here.qvr").read_bytes() == Path("there.qvr").read_bytes()


# -- stopped, and on -------------------------------------------------------------------------


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the process press Ctrl-C when so many chunks have been quantized."""
    quantize = LocalClient.quantize

    def after(count: int) -> None:
        done: list[None] = []

        def counted(*given: Any, **options: Any) -> Any:
            done.append(None)
            if len(done) == count:
                os.kill(os.getpid(), signal.SIGINT)
            return quantize(*given, **options)

        monkeypatch.setattr(LocalClient, "quantize", counted)

    return after


def test_after_ctrl_c_the_same_command_goes_on(
    capsys: Any, folder: Path, stopping: Any, monkeypatch: pytest.MonkeyPatch
):
    command = ("quantize", "model.npz", "model.qvr", "--chunk-values", "200")
    before = signal.getsignal(signal.SIGINT)
    stopping(10)
    code, line = failure(capsys, *command)
    assert code == errors.INTERRUPTED == 130
    (part,) = folder.glob("*.part")
    assert f"{part.name} has the chunks that are done; the same command goes on there" in line
    assert not Path("model.qvr").exists()
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    told = result(capsys, *command)
    assert 9 <= told["resumed_chunks"] < told["chunks"] == 25 + 1 + 23 + 1
    assert names(folder) == ["model.npz", "model.qvr"]
    # With the seed that was drawn by the first run, in one go.
    whole = result(capsys, *command[:2], "whole.qvr", *command[3:], "--seed", str(told["seed"]))
    assert whole["resumed_chunks"] == 0
    assert Path("whole.qvr").read_bytes() == Path("model.qvr").read_bytes()


def test_other_options_do_not_go_on(capsys: Any, folder: Path, stopping: Any):
    stopping(5)
    assert run(["quantize", "model.npz", *CHUNKS]) == errors.INTERRUPTED
    for change in (("--bits", "3"), ("--seed", "8")):
        capsys.readouterr()
        assert run(["quantize", "model.npz", "-f", *CHUNKS, *change]) == errors.OK
        assert "left of a run with another source or other options" in capsys.readouterr().err
        assert len(list(folder.glob("*.part"))) == 1


def test_a_source_that_changed_does_not_go_on(capsys: Any, folder: Path, stopping: Any):
    stopping(5)
    assert run(["quantize", "model.npz", *CHUNKS]) == errors.INTERRUPTED
    found = Path("model.npz").stat()
    os.utime("model.npz", ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    capsys.readouterr()
    assert run(["quantize", "model.npz", *CHUNKS]) == errors.OK
    assert "another source" in capsys.readouterr().err


def test_a_source_that_changes_meanwhile_is_refused(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    written = model.write_chunks

    def touched(*given: Any, **options: Any) -> bool:
        os.utime("model.npz", ns=(0, 0))
        return written(*given, **options)

    monkeypatch.setattr("quiver_client.cli.quantize.write_chunks", touched)
    code, line = failure(capsys, "quantize", "model.npz")
    assert code == errors.FAILED
    assert "changed while it was read" in line
    assert names(folder) == ["model.npz"]


def test_restart_begins_anew(capsys: Any, stopping: Any):
    stopping(5)
    assert run(["quantize", "model.npz", *CHUNKS]) == errors.INTERRUPTED
    capsys.readouterr()
    assert result(capsys, "quantize", "model.npz", *CHUNKS, "--restart")["resumed_chunks"] == 0


# -- errors that a person can act on ---------------------------------------------------------


def damaged() -> None:
    run(["quantize", "model.npz", *CHUNKS])
    data = bytearray(Path("model.qvr").read_bytes())
    data[-200] ^= 1
    Path("model.qvr").write_bytes(data)


def test_a_damaged_file_is_refused_with_its_byte(capsys: Any, folder: Path):
    damaged()
    capsys.readouterr()
    code, line = failure(capsys, "dequantize", "model.qvr", "back.npz")
    assert code == errors.FAILED
    assert "model.qvr is no whole .qvr file: at byte " in line
    assert not Path("back.npz").exists()
    data = Path("model.qvr").read_bytes()
    Path("model.qvr").write_bytes(data[:5000])
    assert (
        "at byte 5000: the file ends within chunk"
        in failure(capsys, "dequantize", "model.qvr", "back.npz")[1]
    )
    assert names(folder) == ["model.npz", "model.qvr"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["quantize", "missing.npy"], 1, "missing.npy: No such file or directory"),
        (["quantize", "model.npz", "no/model.qvr"], 2, "no is no folder; make it first"),
        (["quantize", "model.npz", "model.npz"], 2, "model.npz is there already; --force"),
        (["quantize", "model.npz", "-b", "9"], 2, "see quiver quantize --help"),
        (["quantize", "model.npz", "--bits-of", "a=9"], 2, "must be PATTERN=BITS"),
        (["quantize", "model.npz", "--shape", "2,x"], 2, "must be numbers with commas"),
        (["quantize", "text.txt"], 1, "for bare values say their type: --dtype float32"),
        (["quantize", "model.npz", "--block-size", "5", "-m", "simba"], 1, "block_size"),
        (["quantize", "model.npz", "--server", "http://127.0.0.1:9"], 3, "is it running"),
        (["dequantize", "model.npz"], 1, "it does not begin as a .qvr file"),
        (["dequantize", "m.qvr", "m.txt"], 2, "unknown ending '.txt'; use one of .npy"),
        (["dequantize", "m.qvr", "m.npy"], 1, "holds one tensor; there are 4"),
        (["compress"], 2, "No such command 'compress'"),
    ],
)
def test_errors_are_one_line(capsys: Any, arguments: list[str], code: int, expected: str):
    Path("text.txt").write_text("0.1 0.2 0.3")
    if "m.qvr" in arguments:
        run(["quantize", "model.npz", "m.qvr"])
    if "--server" in arguments:
        # A client tries again for a while.
        arguments = [*arguments, "--timeout", "2"]
    capsys.readouterr()
    got, line = failure(capsys, *arguments)
    assert (got, expected in line) == (code, True), line


def test_errors_are_json_for_programs(capsys: Any):
    assert run(["quantize", "missing.npy", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    told = json.loads(said.err)["error"]
    assert told == {
        "code": "system",
        "detail": "missing.npy: No such file or directory",
        "hint": None,
        "exit_code": 1,
    }


def test_faults_of_our_own_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    """The control: only errors that are raised on purpose become one line."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("quiver_client.cli.quantize.chosen_policy", broken)
    with pytest.raises(ZeroDivisionError):
        run(["quantize", "model.npz"])


def test_what_is_left_out_is_told(capsys: Any, folder: Path):
    import zipfile

    with zipfile.ZipFile("model.npz", "a") as file:
        file.writestr("notes.txt", "hello")
    assert run(["quantize", "model.npz"]) == 0
    assert "left out, for they are no arrays of numbers: notes.txt" in capsys.readouterr().err
    assert result(capsys, "quantize", "model.npz", "-f")["skipped"] == ["notes.txt"]


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    from quiver_client.cli import __main__ as entry

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs click and rich: pip install 'quiver-client\[cli"):
        entry.main()


@pytest.mark.parametrize("entry", app.COMMANDS[:2], ids=lambda entry: entry.name)
def test_help(capsys: Any, entry: app.Entry):
    assert run([entry.name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_a_bar_for_people(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["quantize", "model.npz"]) == 0
    assert "MB/s" in (shown := capsys.readouterr().err) or "kB/s" in shown or "B/s" in shown
    assert run(["quantize", "model.npz", "-f", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_of_files(capsys: Any, arrays: Any):
    Path("model").mkdir()
    for name in ("a.weight", "b.weight"):
        np.save("w.npy", arrays[name])
        run(["quantize", "w.npy", "w.qvr", "-f", *CHUNKS])
        run(["dequantize", "w.qvr", f"model/{name}.safetensors"])
        with qk.qvr.open("w.qvr") as file:
            assert file.names == ("w",)
    capsys.readouterr()
    code, line = failure(capsys, "quantize", "model")
    assert code == errors.FAILED
    assert "b.weight.safetensors has tensor 'w', as model/a.weight.safetensors has" in line
    Path("model/b.weight.safetensors").unlink()
    assert result(capsys, "quantize", "model")["target"] == "model.qvr"


def test_sources_of_every_kind(capsys: Any, arrays: Any):
    np.save("w.npy", arrays["a.weight"])
    Path("w.f32").write_bytes(arrays["a.weight"].tobytes())
    run(["quantize", "w.npy", "w1.qvr", *CHUNKS])
    run(["quantize", "w.f32", "w2.qvr", *CHUNKS, "--dtype", "float32", "--shape", "50,100"])
    assert Path("w1.qvr").read_bytes() == Path("w2.qvr").read_bytes()
    # Decoded, then quantized again.
    capsys.readouterr()
    assert result(capsys, "quantize", "w1.qvr", "w3.qvr")["tensors"] == 1
    with open_source("w3.qvr") as source:
        assert source.array().shape == (50, 100)
    assert isinstance(qvr.part_header("w3.qvr"), qvr.Header)
