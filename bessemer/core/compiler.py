"""torch.compile as this project uses it: on request, and on a processor with a short way to the first step.

On a processor the compiler writes a small C++ file for each kernel and hands it to g++, where all but a tenth of the time goes
to reading torch's headers. So kernels of one graph are compiled together, as many files as there are cores; the headers are
compiled ahead, once a machine, while the model is still being built; and instruction sets that a compiler of this age is known
to have are not tried out (six programs, three seconds, at every start). A warm start is spared what an earlier one has noted: torch
hashes all its own sources, and imports setuptools to find a library that is there already (0.15 and 0.2 s). Measured in
benchmarks/throughput.py. All of this only hastens: where torch's internals are not as expected, its own ways stay in place.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch

from bessemer.core import compiler_notes
from bessemer.core.device import is_accelerator

_FUSING = False
_NEWEST = 12
"""The first g++ that knows every instruction set torch would try out, but for AMX on float16."""
_PREFIX = "#include <torch/csrc/inductor/cpp_prefix.h>"
_ENTRY = re.compile(r'extern "C"\s+void\s+kernel\(')


def fuse(wanted: bool) -> None:
    """Lets functions marked `fused` be compiled from now on, or not."""
    global _FUSING
    _FUSING = wanted
    if wanted and not is_accelerator() and _compiler_version() >= _NEWEST:
        try:
            _trust_instruction_sets()
            _join_kernels()
            _know_torch()
            if compiler_notes.read(_headers_done()) is None:
                threading.Thread(target=_compile_headers, daemon=True).start()
        except (ImportError, AttributeError):
            return


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a small function that gains from being compiled into one kernel; it runs as written until `fuse(True)`."""
    kernel: Callable[..., Any] | None = None

    @wraps(function)
    def call(*given: Any) -> Any:
        nonlocal kernel
        if not _FUSING:
            return function(*given)
        if kernel is None:  # here and not at import, which would cost every command the two seconds of importing the compiler
            kernel = torch.compile(function, dynamic=False)
        return kernel(*given)

    return call


@cache
def _compiler_version() -> int:
    """The major version of the GNU compiler torch.compile would call, or 0."""
    try:
        told = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(told.split(".")[0]) if told[:1].isdigit() and "CXX" not in os.environ else 0


def _trust_instruction_sets() -> None:
    """Takes the processor's word for what it can do, instead of compiling and loading a program for each instruction set."""
    from torch._inductor import config, cpu_vec_isa

    config.cpp.vec_isa_ok = True
    tried = cpu_vec_isa.VecISA.check_build
    if hasattr(tried, "tried"):
        return

    @wraps(tried)
    def check_build(self: Any, code: str) -> bool:
        return True if "amx-fp16" not in self._arch_flags else tried(self, code)

    check_build.tried = tried  # type: ignore[attr-defined]
    cpu_vec_isa.VecISA.check_build = check_build  # type: ignore[method-assign]


def _headers_done() -> Path:
    """The note that torch's headers have been compiled."""
    return compiler_notes.note("headers", torch.__version__, _compiler_version())


def _know_torch() -> None:
    """Gives the compiler's caches the hash of torch's sources that an earlier run took, if none of them has been written since."""
    from torch._inductor.codecache import torch_key

    known = compiler_notes.note("torch", compiler_notes.stamp(Path(torch.__file__).parent, ".py"))
    found = compiler_notes.read(known)
    if found is None:
        compiler_notes.write(known, torch_key().hex())
        return
    with suppress(RuntimeError, ValueError):  # it is known already, or the note is none of ours
        torch_key.set(bytes.fromhex(found))  # type: ignore[attr-defined]


def _compile_headers() -> None:
    """Has torch's headers compiled ahead, if they aren't yet; whoever needs them first waits for it."""
    try:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        CppPythonBindingsCodeCache.load_pybinding_async(["float*"], f'{_PREFIX}\nextern "C" void kernel(float* x) {{}}')
        compiler_notes.write(_headers_done())
    except Exception:  # the first kernel will say what is wrong
        return


def _join_kernels() -> None:
    """Makes torch's compiler collect the kernels of a graph, which are all asked for before the first is waited for."""
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    from torch._inductor.codecache import CodeCacheFuture, CppPythonBindingsCodeCache

    alone = AsyncCompile.cpp_pybinding
    if hasattr(alone, "alone"):
        return

    class Joint(CppPythonBindingsCodeCache):
        """Several kernels in one library, whose one entry gives the Python function of each by number."""

        cache: dict[str, Any] = {}

    class Future(CodeCacheFuture):
        def __init__(self, joined: _Joined, number: int) -> None:
            self.joined, self.number = joined, number

        def result(self, timeout: float | None = None) -> Any:
            return self.joined.kernel(self.number)

    @wraps(alone)
    def cpp_pybinding(self: Any, argtypes: list[str], source_code: str) -> Any:
        threads = get_compile_threads()
        if threads <= 1 or not source_code.lstrip().startswith(_PREFIX) or len(_ENTRY.findall(source_code)) != 1:
            return alone(self, argtypes, source_code)
        joined = self.__dict__.setdefault("joined", None)
        if joined is None or joined.closed:
            joined = self.joined = _Joined(Joint, self.submit, threads)
        return Future(joined, joined.add(argtypes, source_code))

    cpp_pybinding.alone = alone  # type: ignore[attr-defined]
    AsyncCompile.cpp_pybinding = cpp_pybinding  # type: ignore[method-assign]


class _Joined:
    """The kernels of one graph, compiled in as many libraries as there are cores when the first is asked for."""

    def __init__(self, library: Any, submit: Any, threads: int) -> None:
        self.library, self.submit, self.threads = library, submit, threads
        self.sources: list[tuple[Sequence[str], str]] = []
        self.kernels: dict[int, Any] = {}

    @property
    def closed(self) -> bool:
        return bool(self.kernels)

    def add(self, argtypes: Sequence[str], source: str) -> int:
        self.sources.append((argtypes, source))
        return len(self.sources) - 1

    def kernel(self, number: int) -> Any:
        if not self.kernels:
            pending = [(members, self._begin(members)) for members in self._shares()]
            for members, loaded in pending:
                entry = loaded().kernel
                self.kernels |= {member: entry(place) for place, member in enumerate(members)}
        return self.kernels[number]

    def _shares(self) -> list[list[int]]:
        """The kernels' numbers in groups of about the same length of source, one for each core."""
        shares: list[list[int]] = [[] for _ in range(min(len(self.sources), self.threads))]
        for number in sorted(range(len(self.sources)), key=lambda n: -len(self.sources[n][1])):
            min(shares, key=lambda share: sum(len(self.sources[n][1]) for n in share)).append(number)
        return shares

    def _begin(self, members: list[int]) -> Callable[[], Any]:
        """What waits for the library of some kernels, which is being compiled or is there already."""
        bodies = [_ENTRY.sub(f"static void kernel_{n}(", self.sources[n][1].replace(_PREFIX, "")) for n in members]
        code = "\n".join([_PREFIX, *bodies, _bindings(self.library, [(n, self.sources[n][0]) for n in members])])
        known = compiler_notes.note("library", code, _flags())
        path = compiler_notes.read(known)
        if path is not None and os.path.exists(path):
            return lambda: self.library._load_library(path, Path(path).name.split(".")[0])
        compiled = self.library.load_async(code, "cpu", submit_fn=self.submit)

        def load() -> Any:
            module = compiled()
            compiler_notes.write(known, module.__file__)
            return module

        return load


def _flags() -> tuple[Any, ...]:
    """What the same code may be compiled differently by."""
    from torch._inductor import config, cpu_vec_isa

    options = {name: value for name, value in config.get_config_copy().items() if name.startswith("cpp")}
    return torch.__version__, _compiler_version(), str(cpu_vec_isa.pick_vec_isa()), sorted(options.items(), key=repr)


def _bindings(library: Any, kernels: list[tuple[int, Sequence[str]]]) -> str:
    """C++ that gives each kernel a Python function, and the module an entry `kernel(place)` that returns it."""
    functions, table = [], []
    for number, argtypes in kernels:
        given = ", ".join(f"parse_arg<{kind.replace('const ', '')}>(args, {place})" for place, kind in enumerate(argtypes))
        functions.append(_FUNCTION.replace("NUMBER", str(number)).replace("GIVEN", given).replace("COUNT", str(len(argtypes))))
        table.append(f'{{"kernel_{number}", kernel_{number}_py, METH_VARARGS, ""}}')
    table_of_all = f"static PyMethodDef all_kernels[] = {{{', '.join(table)}, {{NULL, NULL, 0, NULL}}}};"
    return library.suffix_template.format(
        arg_len=1,
        entry_func="kernel",
        call_entry_func="return PyCFunction_New(&all_kernels[parse_arg<int64_t>(args, 0)], NULL);",
        extra_parse_arg="\n".join([*functions, table_of_all]),
    )


_FUNCTION = """
static PyObject* kernel_NUMBER_py(PyObject* self, PyObject* args) {
    try {
        if (!PyTuple_CheckExact(args) || PyTuple_GET_SIZE(args) != COUNT) throw std::runtime_error("requires COUNT args");
        kernel_NUMBER(GIVEN);
        Py_RETURN_NONE;
    } catch (std::exception const& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
        return nullptr;
    }
}
"""
