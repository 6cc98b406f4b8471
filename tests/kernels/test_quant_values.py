"""The instructions that turn codes into numbers, followed one by one on all 256 bytes, without a GPU."""

import re
import struct

import pytest
import torch

from labkit.kernels import quant_values
from labkit.kernels.nf4 import LEVELS

BYTES = list(range(256))


def follow(ptx, outputs, word):
    """The registers $0 … of some lines of PTX, given the 32-bit word in the register after the last of them."""
    seen = {f"${outputs}": word}

    def value(name):
        return seen[name] if name in seen else int(name, 16 if name.startswith("0x") else 10)

    def single(name):
        return struct.unpack("<f", struct.pack("<I", int(name[2:], 16) if name.startswith("0f") else value(name)))[0]

    def halves(word):
        return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)

    for line in re.split(r"[;{}]", ptx.replace("\n", " ")):
        match = re.match(r"\s*([a-z0-9.]+)\s+(.*)", line)
        if not match or match[1] == ".reg":
            continue
        name, (to, *given) = match[1], [part.strip() for part in match[2].split(",")]
        if name == "add.f32":
            total = torch.tensor(single(given[0])) + torch.tensor(single(given[1]))
            result = struct.unpack("<I", struct.pack("<f", total.item()))[0]
        elif name == "fma.rn.bf16x2":
            a, b, c = (halves(value(each)).float() for each in given)
            low, high = (a * b + c).bfloat16().view(torch.uint16).tolist()
            result = high << 16 | low
        else:
            a, b, *rest = (*map(value, given), 0)
            result = WHOLE[name](a, b, *rest)
        seen[to] = result & 0xFFFFFFFF
    return [seen[f"${i}"] for i in range(outputs)]


def permuted(a, b, selector):
    """PTX's prmt: four bits of the selector choose one of eight bytes, or with the top one spread its sign."""
    bytes_ = list(a.to_bytes(4, "little") + b.to_bytes(4, "little"))
    picked = 0
    for i in range(4):
        code = selector >> 4 * i & 15
        byte = bytes_[code & 7]
        picked |= (0xFF * (byte >> 7) if code & 8 else byte) << 8 * i
    return picked


def looked_up(a, b, c, table):
    """PTX's lop3: bit by bit, a, b and c are the number of an entry."""
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))


WHOLE = {
    "mov.b32": lambda a, *_: a,
    "and.b32": lambda a, b, *_: a & b,
    "xor.b32": lambda a, b, *_: a ^ b,
    "shl.b32": lambda a, b, *_: a << b,
    "shr.b32": lambda a, b, *_: a >> b,
    "prmt.b32": lambda a, b, selector, *_: permuted(a, b, selector),
    "lop3.b32": lambda a, b, c, table, *_: looked_up(a, b, c, table),
}


def words():
    for first in range(0, 256, 4):
        yield int.from_bytes(BYTES[first : first + 4], "little")


def bfloats(registers):
    """Two a register, the low half first."""
    halves = [half for register in registers for half in (register & 0xFFFF, register >> 16)]
    return torch.tensor(halves, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()


def test_int8():
    found = [register for word in words() for register in follow(quant_values._INT8.value, 4, word)]
    values = torch.tensor(found, dtype=torch.int64).to(torch.uint32).view(torch.float32)
    assert torch.equal(values, torch.tensor(BYTES, dtype=torch.uint8).view(torch.int8).float())


def test_fp8():
    values = torch.cat([bfloats(follow(quant_values._FP8.value, 2, word)) for word in words()])
    wanted = torch.tensor(BYTES, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    finite = wanted.isfinite()
    assert finite.sum() == 254
    assert torch.equal(values[finite], wanted[finite])
    assert values[~finite].tolist() == [480, -480]


@pytest.mark.parametrize("rest", [False, True])
def test_nf4(rest):
    even, odd = [], []
    for word in words():
        registers = follow(quant_values._NF4.value, 4, word)
        halves = bfloats(registers[:2]), bfloats(registers[2:])
        if rest:
            registers = follow(quant_values._NF4_REST.value, 4, word)
            halves = halves[0] + bfloats(registers[:2]), halves[1] + bfloats(registers[2:])
        even.append(halves[0])
        odd.append(halves[1])
    codes, levels = torch.tensor(BYTES), torch.tensor(LEVELS)
    if not rest:
        assert torch.equal(torch.cat(even), levels.bfloat16().float()[codes >> 4])
        assert torch.equal(torch.cat(odd), levels.bfloat16().float()[codes & 15])
    else:
        torch.testing.assert_close(torch.cat(even), levels[codes >> 4], rtol=2**-16, atol=0)
        torch.testing.assert_close(torch.cat(odd), levels[codes & 15], rtol=2**-16, atol=0)
