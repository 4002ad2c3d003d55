"""Compiled loops: a program of a few operations, run over a tile of frames that stays in cache.

A sparse row of a convolution is computed for many neighbouring frames at once: each weight that is
not zero is one multiply-add of whole vector registers, wherever it lies, so that zeros cost
nothing. This holds because a convolution over time is vectorised over time (as in XNNPACK's sparse
kernels, Elsen et al. 2020, arXiv:1911.09723, there over pixels). numba compiles this file once;
the result is kept on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

LOAD, LOAD_LOW, UP, CONV, GATE, LEAKY, STORE = range(7)
"""Operations, see `run_tile`."""
PLAIN, ACTIVATED, RESIDUAL, RESIDUAL_ACTIVATED, SUM = range(5)
"""What a CONV does with its result: write it, write its leaky ReLU, write the sum with a residual,
write both that sum and its leaky ReLU, or add that sum to the target."""
STORE_PLAIN, STORE_LEAKY, STORE_TANH = range(3)
FIELDS = 10
"""Numbers of an operation."""


def _lanes() -> int:
    """Return float32 lanes of the widest vectors of this processor, 4 if it does not tell."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        return 4
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


LANES = _lanes()
_REGISTERS = (8, 2, 1) if LANES == 8 else (16, 4, 1)
"""Vector registers of a window: the widest that leaves some free, and narrower ones for what is
left of a tile."""
WIDE, MIDDLE, NARROW = (LANES * count for count in _REGISTERS)
FLOAT = np.float32


def _compiled(**how: Any) -> Any:
    """Compile at the first call, and keep the result on disk where a folder can be written."""

    def compile_(function: Any) -> Any:
        try:
            return numba.njit(nogil=True, inline="never", cache=True, **how)(function)
        except RuntimeError:  # no such folder
            return numba.njit(nogil=True, inline="never", **how)(function)

    return compile_


def _make_row(registers: int, mode: int) -> Any:
    """Return a function that computes one output row of a sparse convolution over a window.

    It starts with the bias, adds each weight times the source at the weight's offset, and ends as
    the mode says. All frames of the window stay in registers.
    """

    @intrinsic
    def row(
        context: Any,
        source: Any,
        start: Any,
        offsets: Any,
        values: Any,
        first: Any,
        end: Any,
        bias: Any,
        residual: Any,
        kept: Any,
        target: Any,
        slope: Any,
    ) -> Any:
        whole, array = types.intp, source
        signature = types.void(
            *(array, whole, offsets, values, whole, whole),
            *(types.float32, whole, whole, whole, types.float32),
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _row_code(context, builder, signature, arguments, registers, mode)

        return signature, generate

    return row


def _row_code(
    context: Any, builder: Any, signature: Any, arguments: Any, registers: int, mode: int
) -> Any:
    def data(index: int) -> Any:
        return context.make_array(signature.args[index])(context, builder, arguments[index]).data

    memory, offsets, values = data(0), data(2), data(3)
    start, first, end, bias = arguments[1], arguments[4], arguments[5], arguments[6]
    vector, whole, number = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64), ir.IntType(32)
    undefined = ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(number, LANES), [0] * LANES)

    def splat(scalar: Any) -> Any:
        one = builder.insert_element(undefined, scalar, ir.Constant(number, 0))
        return builder.shuffle_vector(one, undefined, everywhere)

    def place(pointer: Any, register: int) -> Any:
        there = builder.gep(pointer, [ir.Constant(whole, register * LANES)])
        return builder.bitcast(there, vector.as_pointer())

    def function(name: str, count: int) -> Any:
        kind = ir.FunctionType(vector, [vector] * count)
        return builder.module.declare_intrinsic(f"llvm.{name}.v{LANES}f32", (), kind)

    multiply_add, maximum = function("fma", 3), function("maxnum", 2)
    begin, before, origin = splat(bias), builder.block, builder.gep(memory, [start])
    loop, done = builder.append_basic_block("weights"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", first, end), loop, done)
    builder.position_at_end(loop)
    index = builder.phi(whole)
    index.add_incoming(first, before)
    sums = [builder.phi(vector) for _ in range(registers)]
    offset = builder.zext(builder.load(builder.gep(offsets, [index])), whole)
    weight = splat(builder.load(builder.gep(values, [index])))
    window = builder.gep(origin, [offset])
    added = [
        builder.call(multiply_add, [weight, builder.load(place(window, at), align=4), one])
        for at, one in enumerate(sums)
    ]
    following = builder.add(index, ir.Constant(whole, 1))
    index.add_incoming(following, loop)
    for one, new in zip(sums, added, strict=True):
        one.add_incoming(begin, before)
        one.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
    builder.position_at_end(done)
    results = []
    for new in added:
        result = builder.phi(vector)
        result.add_incoming(begin, before)
        result.add_incoming(new, loop)
        results.append(result)
    residual, kept, target = (builder.gep(memory, [arguments[at]]) for at in (7, 8, 9))
    slope = splat(arguments[10])
    for at, result in enumerate(results):
        if mode >= RESIDUAL:
            result = builder.fadd(result, builder.load(place(residual, at), align=4))
        if mode in (RESIDUAL, RESIDUAL_ACTIVATED):
            builder.store(result, place(kept, at), align=4)
        if mode in (ACTIVATED, RESIDUAL_ACTIVATED):
            result = builder.call(maximum, [result, builder.fmul(result, slope)])
        if mode == SUM:
            result = builder.fadd(result, builder.load(place(target, at), align=4))
        if mode != RESIDUAL:
            builder.store(result, place(target, at), align=4)
    return context.get_dummy_value()


_W0, _W1, _W2, _W3, _W4 = (_make_row(_REGISTERS[0], mode) for mode in range(5))
_M0, _M1, _M2, _M3, _M4 = (_make_row(_REGISTERS[1], mode) for mode in range(5))
_N0, _N1, _N2, _N3, _N4 = (_make_row(_REGISTERS[2], mode) for mode in range(5))


@_compiled()
def _rows(mode, m, s0, stride, count, pointers, first, o, v, bias, res, kept, target, slope, t, e):
    """Compute `count` output rows of a sparse convolution for the columns t to e, and a bit on."""
    while t < e:
        left = e - t
        for row in range(count):
            g, at = first + row, row * stride + t
            a, b, c = pointers[g], pointers[g + 1], bias[g]
            r, k, d, s = res + at, kept + at, target + at, s0 + t
            if left > 2 * MIDDLE:
                if mode == 0:
                    _W0(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 1:
                    _W1(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 2:
                    _W2(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 3:
                    _W3(m, s, o, v, a, b, c, r, k, d, slope)
                else:
                    _W4(m, s, o, v, a, b, c, r, k, d, slope)
            elif left > NARROW:
                if mode == 0:
                    _M0(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 1:
                    _M1(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 2:
                    _M2(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 3:
                    _M3(m, s, o, v, a, b, c, r, k, d, slope)
                else:
                    _M4(m, s, o, v, a, b, c, r, k, d, slope)
            else:
                if mode == 0:
                    _N0(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 1:
                    _N1(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 2:
                    _N2(m, s, o, v, a, b, c, r, k, d, slope)
                elif mode == 3:
                    _N3(m, s, o, v, a, b, c, r, k, d, slope)
                else:
                    _N4(m, s, o, v, a, b, c, r, k, d, slope)
        t += WIDE if left > 2 * MIDDLE else MIDDLE if left > NARROW else NARROW


@_compiled()
def _up(m, source, target, stride, count, pointers, first, o, v, bias, spare, room, phases, low):
    """Compute rows of a transposed convolution: each phase is a convolution of the low rate."""
    for row in range(count):
        g = first + row * phases
        _rows(0, m, source, room, phases, pointers, g, o, v, bias, 0, 0, spare, FLOAT(0), 0, low)
        at = target + row * stride
        out = m[at : at + low * phases]
        for phase in range(phases):
            one = m[spare + phase * room : spare + phase * room + low]
            for frame in range(low):
                out[frame * phases + phase] = one[frame]


@numba.njit(inline="always")
def _tanh(x):
    """Return tanh as a ratio of polynomials, within 4 units in the last place (Eigen's ptanh)."""
    x = min(max(x, FLOAT(-7.90531110763549805)), FLOAT(7.90531110763549805))
    s = x * x
    p = FLOAT(-2.76076847742355e-16) * s + FLOAT(2.00018790482477e-13)
    p = p * s + FLOAT(-8.60467152213735e-11)
    p = p * s + FLOAT(5.12229709037114e-08)
    p = p * s + FLOAT(1.48572235717979e-05)
    p = p * s + FLOAT(6.37261928875436e-04)
    p = p * s + FLOAT(4.89352455891786e-03)
    q = FLOAT(1.19825839466702e-06) * s + FLOAT(1.18534705686654e-04)
    q = q * s + FLOAT(2.26843463243900e-03)
    q = q * s + FLOAT(4.89352518554385e-03)
    return x * p / q


# The loops below run over slices: over places in one large array LLVM does not vectorise them.


@_compiled(error_model="numpy")
def _gate(tanh, sigmoid, target):
    """Write the tanh of one row times the sigmoid of another."""
    for t in range(len(target)):
        target[t] = _tanh(tanh[t]) * (FLOAT(0.5) * _tanh(FLOAT(0.5) * sigmoid[t]) + FLOAT(0.5))


@_compiled(error_model="numpy")
def _tanh_row(source, target):
    for t in range(len(target)):
        target[t] = _tanh(source[t])


@_compiled()
def _leaky(source, target, factor, slope):
    """Write the leaky ReLU of a factor times the source; a slope of 1 is none."""
    for t in range(len(target)):
        value = source[t] * factor
        bent = value * slope
        target[t] = value if value > bent else bent


@_compiled()
def _load(m, target, stride, count, x, first, begin, columns, slope):
    """Copy rows of x, frames `begin` and on, zero where there is none, through leaky ReLU."""
    frames = x.shape[1]
    low = min(max(0, -begin), columns)
    high = max(low, min(columns, frames - begin))
    for row in range(count):
        at = target + row * stride
        m[at : at + low] = FLOAT(0)
        m[at + high : at + columns] = FLOAT(0)
        if high > low:
            source = x[first + row, begin + low : begin + high]
            _leaky(source, m[at + low : at + high], FLOAT(1), slope)


@_compiled()
def _clear(m, place, stride, count, columns, left, right):
    """Set the first and last columns of rows to zero."""
    for row in range(count):
        at = place + row * stride
        m[at : at + left] = FLOAT(0)
        m[at + columns - right : at + columns] = FLOAT(0)


@_compiled()
def run_tile(program, weights, m, x, out, begin, end, frame, scales):
    """Run a program over the frames `begin` to `end` of its output.

    Args:
        program: int64 [operations, FIELDS]: kind, source, target, rows, first, margin, and four
            more by kind. Places are offsets into the memory. A margin says how many frames on both
            sides of the tile an operation computes for those after it.
        weights: packed rows: pointers int64, offsets uint32, values float32, bias float32.
        m: the memory, float32: all buffers, of rows `stride` apart.
        x: float32 [rows, frames of the input].
        out: float32 [rows, frames of the output], written.
        begin, end: of the tile.
        frame: of all tiles: stride, column of the first frame, phases, padding, taps of a phase,
            stride of the low rate, place and room of spare memory, frames in all.
        scales: float32: leaky ReLU's slope inside, its slope at the end, a factor at the end.
    """
    pointers, o, v, bias = weights
    stride, origin, phases, padding, taps, low_stride, spare, room, frames = frame
    slope, last_slope, factor = scales
    for number in range(program.shape[0]):
        kind, source, target, count, first, margin, extra, mode, res, kept = program[number]
        columns, t = end - begin + 2 * margin, origin - margin
        left, right = max(0, margin - begin), max(0, end + margin - frames)
        left, right = min(left, columns), min(right, columns)
        if kind == LOAD:
            _load(m, target + t, stride, count, x, first, begin - margin, columns, FLOAT(1))
        elif kind in (LOAD_LOW, UP):
            q0 = (begin - margin + padding) // phases
            low = (end + margin - 1 + padding) // phases - q0 + 1
            if kind == LOAD_LOW:
                q0, low = q0 - (taps - 1), low + taps - 1
                _load(m, target, low_stride, count, x, first, q0, low, FLOAT(1))
            else:
                place = target + origin + q0 * phases - padding - begin
                _up(
                    m,
                    source,
                    place,
                    stride,
                    count,
                    pointers,
                    first,
                    o,
                    v,
                    bias,
                    spare,
                    room,
                    phases,
                    low,
                )
                _clear(m, target + t, stride, count, columns, left, right)
        elif kind == CONV:  # extra: frames that the kernel reaches to a side
            _rows(
                mode,
                m,
                source - extra,
                stride,
                count,
                pointers,
                first,
                o,
                v,
                bias,
                res,
                kept,
                target,
                slope,
                t,
                t + columns,
            )
            if left + right:
                if mode != RESIDUAL:
                    _clear(m, target + t, stride, count, columns, left, right)
                if mode in (RESIDUAL, RESIDUAL_ACTIVATED):
                    _clear(m, kept + t, stride, count, columns, left, right)
        else:
            for row in range(count):
                at = source + row * stride + t
                one = m[at : at + columns]
                to = target + row * stride + t
                if kind == GATE:
                    half = at + count * stride
                    _gate(one, m[half : half + columns], m[to : to + columns])
                elif kind == LEAKY:
                    _leaky(one, m[to : to + columns], FLOAT(1), last_slope if extra else slope)
                else:
                    row_out = out[first + row, begin:end]
                    if extra == STORE_TANH:
                        _tanh_row(one, row_out)
                    else:
                        keep = extra == STORE_LEAKY
                        _leaky(
                            one,
                            row_out,
                            factor if keep else FLOAT(1),
                            last_slope if keep else FLOAT(1),
                        )
