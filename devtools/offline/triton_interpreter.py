"""Triton's interpreter as our checks want it: quicker, and with sums formed as compiled code forms them.

Importing this changes the interpreter of this process. Triton decides at import whether it interprets, so
TRITON_INTERPRET=1 must be set before: for a process that does nothing else.
"""

import dataclasses
import functools
import os

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("TRITON_INTERPRET: expected 1 before Triton is imported; start a process of its own with it")


def _call_device_function(self, *args, **kwargs):
    """As Triton's own, which patches triton.language anew at every call and spends half of its time so."""
    languages = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
    if any(tl.core.is_builtin(found) for found in (tl.tensor.__add__, *(language.load for language in languages))):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def _sum_in_pairs(self, input):
    """A sum along an axis as compiled code forms it, in pairs, where numpy adds one by one, which errs more."""
    x = np.moveaxis(input.handle.data, self.axis, 0)
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return self.to_tensor(np.expand_dims(x[0], self.axis) if self.keep_dims else x[0], input.dtype)


def _init_block_type(self, element_ty, shape):
    """As Triton's own, which checks the same few shapes anew for every number that it computes."""
    if element_ty.is_ptr():  # has no hash
        _first_block_type(self, element_ty, shape)
        return
    key = element_ty, *(size.value if isinstance(size, tl.constexpr) else size for size in shape)
    if key not in _block_types:
        _first_block_type(self, element_ty, shape)
        _block_types[key] = dict(self.__dict__)
    self.__dict__.update(_block_types[key])


def _numpy_type(kind):
    """As Triton's own, which makes a table of all types at every call."""
    scalar = kind.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else _numpy_type_of_numbers(scalar)


_first_block_type, _block_types = tl.block_type.__init__, {}
_numpy_type_of_numbers = functools.cache(interpreter._get_np_dtype)
tl.block_type.__init__ = _init_block_type
interpreter._get_np_dtype = _numpy_type
# Integers are computed in 64 bits again, and asserted to fit 32, by assertions that do not fail here.
interpreter.interpreter_builder.options = dataclasses.replace(
    interpreter.interpreter_builder.options, sanitize_overflow=False
)
interpreter.InterpretedFunction.__call__ = _call_device_function
interpreter.ReduceOps.sum = _sum_in_pairs
