"""The sparse encoding gives back every bit, and refuses what is damaged or hostile."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from zstandard import ZstdCompressor

from vits_prune import InputError, PruneSpec, prune
from vits_prune.voices.sparse_file import _FORMAT, _checksum, decode, encode, write_sparse


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].contiguous().numpy().tobytes() == second[name].numpy().tobytes()
        for name in first
    )


def some(*shape, zeros=0.5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, generator=generator)
    return torch.where(torch.rand(*shape, generator=generator) < zeros, torch.zeros(()), values).to(dtype)


def test_the_real_voice_comes_back_to_the_bit(joe):
    tensors = dict(prune(joe, PruneSpec(amount=0.5)).model.named_parameters())
    data = encode(tensors)
    assert same(tensors, decode(data))
    assert len(data) < 0.5 * 4 * sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize(
    "tensor",
    [
        some(3, 4, 5), some(1000, zeros=0.99), some(7, 9, dtype=torch.float16), some(50, zeros=0.0), torch.zeros(17), torch.zeros(5000),
        torch.empty(0), torch.empty(3, 0, 2), torch.tensor(1.5), torch.tensor(0.0), some(4, 6).T,
        torch.tensor([0.0, 1e-45, torch.inf, torch.nan]),
        torch.ones(10_000), torch.ones(1),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype} {tensor.count_nonzero()}",
)  # fmt: skip
def test_lossless(tensor):
    data = encode({"one": tensor, "other": torch.arange(5.0)})
    assert same({"one": tensor, "other": torch.arange(5.0)}, decode(data))


def test_no_tensors():
    assert decode(encode({})) == {}


def test_minus_zero_becomes_zero():
    [tensor] = decode(encode({"x": torch.tensor([-0.0, 1.0])})).values()
    assert tensor.tolist() == [0.0, 1.0]
    assert not torch.signbit(tensor).any()


def test_what_is_decoded_may_be_written_to():
    for zeros in (0.0, 0.5):
        [tensor] = decode(encode({"x": some(10, zeros=zeros)})).values()
        tensor += 1


def test_zeros_make_it_small():
    sizes = [len(encode({"x": some(100_000, zeros=zeros)})) for zeros in (0.0, 0.5, 0.9, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 1.01 * 400_000
    assert sizes[2] < 0.2 * 400_000
    assert sizes[3] < 1_000


def test_write_sparse(tmp_path):
    tensors = {"x": some(30, 30)}
    size = write_sparse(tensors, tmp_path / "file")
    assert size == (tmp_path / "file").stat().st_size
    assert same(tensors, decode((tmp_path / "file").read_bytes()))


SAMPLE = {"a": some(6, 5), "b": torch.ones(60), "c": some(3, zeros=0.0)}


@pytest.fixture(scope="module")
def sample():
    return encode(SAMPLE)


def test_the_sample_has_compressed_and_plain_blobs(sample):
    assert sample.count(b"\x28\xb5\x2f\xfd") == 1  # Zstandard's magic number: the ones
    assert same(SAMPLE, decode(sample))


def test_every_truncation_is_refused(sample):
    for length in range(len(sample)):
        with pytest.raises(InputError):
            decode(sample[:length])
    with pytest.raises(InputError):
        decode(sample + b"\0")


@pytest.mark.parametrize("bits", [0x01, 0x20, 0x80, 0xFF])
def test_no_flipped_byte_gives_another_voice(sample, bits):
    refused = 0
    for place in range(len(sample)):
        damaged = bytearray(sample)
        damaged[place] ^= bits
        try:
            tensors = decode(bytes(damaged))
        except InputError:
            refused += 1
        else:
            assert same(SAMPLE, tensors), f"byte {place} of {len(sample)}"
    assert refused > 0.9 * len(sample)


def crafted(index, blobs, **metadata):
    described = json.dumps(index)
    metadata = {"format": _FORMAT, "tensors": described, "crc32": str(_checksum(described, blobs)), **metadata}
    return save(blobs, metadata={key: value for key, value in metadata.items() if value is not None})


def entry(shape, masked=True, dtype="float32"):
    return {"x": {"shape": shape, "dtype": dtype, "masked": masked}}


PLAIN = {"x.values": np.zeros(9, np.uint8), "x.mask": np.zeros(2, np.uint8)}
BOMB = ZstdCompressor().compress(bytes((1 << 26) + 1))
BOMBS = {f"x.{kind}": np.frombuffer(b"\x01" + BOMB, np.uint8) for kind in ("values", "mask")}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "shape",
    [[1 << 29], [1 << 30], [1 << 31], [1 << 40, 1 << 40], [1 << 70], [-1], [-2, -2], [1, -8], [1 << 20], ["x"], 3, None, [None]],
    ids=str,
)
@pytest.mark.parametrize("blobs", [PLAIN, BOMBS], ids=["plain", "bombs"])
def test_a_description_that_lies_allocates_nothing(shape, masked, blobs):
    data = crafted(entry(shape, masked), blobs)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"\xff" * 100, bytes(8), save({"x": np.zeros(3, np.float32)}), crafted(entry([8]), PLAIN, format="other"),
        crafted(entry([8]), PLAIN, tensors="{"), crafted(entry([8]), PLAIN, crc32=None), crafted(entry([8]), PLAIN, crc32="x"),
        crafted([], PLAIN), crafted({"x": 3}, PLAIN), crafted({"x": {}}, PLAIN), crafted(entry([8], dtype="int64"), PLAIN),
        crafted(entry([8], dtype=[]), PLAIN), crafted(entry([8]), {}),
    ],
)  # fmt: skip
def test_other_files_are_refused(data):
    with pytest.raises(InputError) as error:
        decode(data)
    assert "\n" not in str(error.value)
