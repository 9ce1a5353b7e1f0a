"""Every kernel compiles for every architecture, within its registers and without spills."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from quiver_kernels.errors import BackendUnavailable
from quiver_kernels.gpu import ahead, sources
from quiver_kernels.gpu.compiling import (
    CompilationFailed,
    Compiled,
    Nvrtc,
    compiled_file,
    suited,
)

ARCHITECTURES = (75, 80, 90, 100)
# Four blocks of 256 threads fit a multiprocessor with up to 64 registers a thread.
MOST_REGISTERS = 64

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Use:
    """What one kernel uses."""

    architecture: int
    registers: int
    stack: int
    spilled: int


def uses(log: str) -> dict[str, Use]:
    """By kernel, from what the assembler says."""
    found = {}
    pieces = _ENTRY.split(log)[1:]
    for name, architecture, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        memory, registers = _MEMORY.search(text), _REGISTERS.search(text)
        assert memory is not None, text
        assert registers is not None, text
        stack, stores, loads = map(int, memory.groups())
        found[name] = Use(int(architecture), int(registers[1]), stack, stores + loads)
    return found


def complaints(compiled: Compiled, kernels: tuple[str, ...], architecture: int) -> list[str]:
    """Kernels that are missing, or use more than they may."""
    found = uses(compiled.log)
    wrong = [f"{name} is missing" for name in kernels if name.encode() not in compiled.code]
    wrong += [f"{name} is not expected" for name in found if name not in kernels]
    for name in kernels:
        use = found.get(name)
        if use is None or use.architecture != architecture:
            wrong.append(f"nothing is said of {name}")
        elif use.registers > MOST_REGISTERS or use.stack or use.spilled:
            wrong.append(f"{name}: {use}")
    return wrong


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    return Nvrtc.find()


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest) -> Path:
    """Where machine code is kept from run to run, by all that it is made of."""
    return Path(request.config.cache.mkdir("gpu_nvrtc"))


def compiled_once(nvrtc: Nvrtc, folder: Path, module: str, architecture: int) -> Compiled:
    """Machine code and log of a module, of an earlier run if nothing has changed since."""
    name = f"{module}-{sources.fingerprint(module)}-{architecture}-{nvrtc.version}"
    code, log = folder / f"{name}.cubin", folder / f"{name}.log"
    if not (code.exists() and log.exists()):
        made = nvrtc.compile(module, architecture, verbose=True)
        code.write_bytes(made.code)
        # Last, and at once: who finds it finds both.
        part = folder / f"{name}.{os.getpid()}"
        part.write_text(made.log)
        part.replace(log)
    return Compiled(code.read_bytes(), log.read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(nvrtc: Nvrtc, kept: Path, architecture: int):
    for module, kernels in sources.KERNELS.items():
        compiled = compiled_once(nvrtc, kept, module, architecture)
        assert complaints(compiled, kernels, architecture) == []
        assert compiled.code[:4] == b"\x7fELF"


def test_what_changes_is_compiled_anew(
    nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = compiled_once(nvrtc, tmp_path, "widen", 90)
    texts = {name: sources.text(name) for name in (sources.COMMON, "widen.cu")}
    monkeypatch.setattr(sources, "text", lambda name: texts[name])
    assert compiled_once(nvrtc, tmp_path, "widen", 90) == made
    monkeypatch.setattr(nvrtc, "compile", None)
    assert compiled_once(nvrtc, tmp_path, "widen", 90) == made
    for name, text in texts.items():
        monkeypatch.setattr(sources, "text", {**texts, name: f"{text}\n"}.get)
        with pytest.raises(TypeError):
            compiled_once(nvrtc, tmp_path, "widen", 90)
    with pytest.raises(TypeError):
        compiled_once(nvrtc, tmp_path, "widen", 80)


def test_spills_and_registers_are_found(nvrtc: Nvrtc):
    greedy = """
    #include "common.cuh"
    extern "C" __global__ void __launch_bounds__({threads}) greedy(const u64* x, u64* out) {{
        u64 held[{size}];
        #pragma unroll
        for (int i = 0; i < {size}; i++) held[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < {size}; i++) out[i * 1024] = held[{size} - 1 - i] + held[i];
    }}
    """
    spilling = nvrtc.compile_text(greedy.format(threads=1024, size=60), "greedy", 90, verbose=True)
    large = nvrtc.compile_text(greedy.format(threads=256, size=60), "greedy", 90, verbose=True)
    modest = nvrtc.compile_text(greedy.format(threads=256, size=6), "greedy", 90, verbose=True)

    assert uses(spilling.log)["greedy"].spilled > 0
    assert uses(large.log)["greedy"].registers > MOST_REGISTERS
    assert len(complaints(spilling, ("greedy",), 90)) == 1
    assert len(complaints(large, ("greedy",), 90)) == 1
    assert complaints(modest, ("greedy",), 90) == []
    assert len(complaints(modest, ("greedy", "absent"), 90)) == 2


def test_a_source_that_does_not_compile_is_refused_in_words(nvrtc: Nvrtc):
    with pytest.raises(CompilationFailed, match=r"broken\.cu\(2\): error: .*undefined"):
        nvrtc.compile_text("extern __global__ void f() {\n  undefined(); }", "broken", 90)


def test_the_flags_forbid_what_changes_bits(nvrtc: Nvrtc):
    """A product and a sum stay two roundings; with the compiler's own defaults they do not."""
    text = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3]; }'

    assert {"--fmad=false", "--ftz=false"} < set(sources.FLAGS)
    assert nvrtc.compile_text(text, "f", 90).code != _with_flags(nvrtc, text, "--fmad=true")
    assert nvrtc.compile_text(text, "f", 90).code != _with_flags(nvrtc, text, "--ftz=true")
    assert nvrtc.compile_text(text, "f", 90).code == _with_flags(nvrtc, text, "--fmad=false")


def _with_flags(nvrtc: Nvrtc, text: str, flag: str) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        name = flag.partition("=")[0]
        flags = (flag if one.startswith(f"{name}=") else one for one in sources.FLAGS)
        patch.setattr(sources, "FLAGS", tuple(flags))
        return nvrtc.compile_text(text, "f", 90).code


def test_machine_code_is_kept(nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = compiled_file(nvrtc, "widen", 90, tmp_path / "new")
    monkeypatch.setattr(nvrtc, "compile", None)

    assert compiled_file(nvrtc, "widen", 90, tmp_path / "new") == made
    assert made.read_bytes()[:4] == b"\x7fELF"
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert nvrtc.version in made.name
    with pytest.raises(TypeError):
        compiled_file(nvrtc, "widen", 80, tmp_path / "new")
    monkeypatch.setattr(sources, "FLAGS", (*sources.FLAGS, "--other"))
    with pytest.raises(TypeError):
        compiled_file(nvrtc, "widen", 90, tmp_path / "new")


def test_code_that_was_made_ahead_is_taken(
    nvrtc: Nvrtc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sources, "KERNELS", {"widen": sources.KERNELS["widen"]})
    folder = tmp_path / "ahead"

    # The compiler knows no 7.4.
    assert ahead.main(["--folder", str(folder), "74", "80", "90"]) == 0

    assert capsys.readouterr().out == f"2 files in {folder}\n"
    files = sorted(folder.iterdir())
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644] * 2
    monkeypatch.setattr(Nvrtc, "compile", None)
    found = [compiled_file(nvrtc, "widen", one, tmp_path / "no", folder) for one in (80, 90)]
    assert sorted(found) == files
    assert not (tmp_path / "no").exists()
    # Of other sources it is not.
    monkeypatch.setattr(sources, "FLAGS", (*sources.FLAGS, "--other"))
    with pytest.raises(TypeError):
        compiled_file(nvrtc, "widen", 90, tmp_path / "no", folder)


def test_without_an_architecture_nothing_is_made_ahead(nvrtc: Nvrtc, tmp_path: Path):
    assert ahead.main(["--folder", str(tmp_path), "74"]) == 1
    assert set(ahead.ARCHITECTURES) <= set(nvrtc.architectures)


def test_which_architecture_suits_a_device():
    known = (50, 75, 80, 86, 90, 100, 120)

    assert [suited(known, one) for one in (75, 80, 87, 89, 90, 103)] == [75, 80, 86, 86, 90, 100]
    with pytest.raises(BackendUnavailable, match=r"capability 7\.0; NVRTC compiles for .*12\.0"):
        suited(known, 70)
    with pytest.raises(BackendUnavailable, match=r"capability 11\.0"):
        suited(known, 110)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BackendUnavailable, match="device gpu needs NVRTC"):
        Nvrtc(str(tmp_path / "libnvrtc.so"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    with pytest.raises(BackendUnavailable, match="pip install nvidia-cuda-nvrtc-cu12"):
        Nvrtc.find()


def test_every_source_is_listed():
    files = {path.stem for path in sources.FOLDER.glob("*.cu")}

    assert files == set(sources.KERNELS)
    for module, kernels in sources.KERNELS.items():
        text = sources.text(f"{module}.cu")
        found = re.findall(r"^[A-Z]+_KERNEL\((\w+), ", text, re.MULTILINE)
        found += re.findall(r"^extern \"C\" __global__ .* (\w+)\([^()]*\) {$", text, re.MULTILINE)
        assert sorted(found) == sorted(kernels)
