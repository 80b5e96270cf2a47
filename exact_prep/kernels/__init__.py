"""Numba loops over contiguous arrays. NumPy and Numba only; formulas, files and records live elsewhere.

A kernel is a plain function named for what it computes. Its inputs come first and its outputs (`out`) last. It
allocates nothing and returns only a count. `@kernel(signature)` compiles it at its first call, for exactly the dtypes
in the signature. Therefore

* importing this package costs nothing (importing Numba costs 0.3 s; compiling costs about 0.15 s per kernel, once per
  machine: the machine code is cached beside the source, or in the user's cache directory);
* a read-only input (an Arrow buffer) and a writable one run the same machine code, which is compiled only once;
* a wrong dtype is a TypeError, not a silent conversion.

`kernel.python` is the uncompiled function, for tests and debuggers.
"""

from collections.abc import Callable
from typing import Any


class Kernel:
    """A function compiled by Numba at its first call, for one signature."""

    def __init__(self, python: Callable[..., Any], signature: str) -> None:
        self.python = python
        self.signature = signature
        self.__doc__ = python.__doc__
        self.__name__ = python.__name__
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arrays: Any) -> Any:
        """Run the compiled loop; TypeError for a wrong dtype or rank."""
        return self.load()(*arrays)

    def load(self) -> Callable[..., Any]:
        """The compiled loop: compiled, or loaded from the cache, the first time."""
        if self._compiled is None:
            self._compiled = self._compile()
        return self._compiled

    def _compile(self) -> Callable[..., Any]:
        from numba import njit, types

        dtypes = {
            "i2": types.int16,
            "i4": types.int32,
            "i8": types.int64,
            "u2": types.uint16,
            "u4": types.uint32,
            "u8": types.uint64,
        }
        arguments = []
        for word in self.signature.split():
            writable, word = word.startswith("out:"), word.removeprefix("out:")
            scalar, rank = dtypes[word[:2]], word.count(":")
            arguments.append(types.Array(scalar, rank, "C", readonly=not writable) if rank else scalar)
        compiled = types.int64(*arguments)
        try:
            return njit(compiled, nogil=True, cache=True)(self.python)
        # A cache is optional: it may be damaged (a power cut), full, unwritable, or have no place at all.
        except Exception:
            return njit(compiled, nogil=True)(self.python)


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel; `signature` names the arguments in order.

    `i8` is an int64 scalar, `i4[:]` a read-only int32 vector, `u2[::]` a matrix, `out:i4[:]` a vector that is written.
    """
    return lambda python: Kernel(python, signature)
