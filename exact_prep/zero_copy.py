"""NumPy arrays as Arrow arrays and back; nothing is copied.

`pyarrow.array` and `to_numpy` do the same, and import pandas: a third of a second in every process.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def as_arrow(values: np.ndarray, dtype: pa.DataType | None = None) -> pa.Array:
    """A flat array of numbers, as Arrow; `dtype` has the same size and is the array's own by default."""
    dtype = dtype or pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(dtype, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])


def as_numpy(values: pa.Array) -> np.ndarray:
    """An Arrow array of numbers without nulls, as NumPy, read-only."""
    dtype = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    if data is None or not len(values):
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, len(values), values.offset * dtype.itemsize)
