"""The parser of GGUF headers: right on sound files, one clear error and little memory on anything else."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pocketlm.errors import InputError
from pocketlm.export.gguf_header import TENSOR_TYPES, GgufHeader, read_header

PATH = Path("model.gguf")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with every kind of value, and two tensors."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_rope_freq_base(10000.0)
    writer.add_bool("a.bool", True)
    writer.add_int8("a.int8", -3)
    writer.add_uint16("a.uint16", 65535)
    writer.add_int64("a.int64", -(2**40))
    writer.add_float64("a.float64", 0.1)
    writer.add_array("a.strings", ["x", "", "é😀"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.reals", [0.5, -1.5])
    writer.add_tensor("one.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("two.weight", np.arange(64, dtype=np.float16).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def entry_of(sound: bytes, name: bytes) -> int:
    """Where the dimensions of a tensor's entry begin."""
    return sound.index(name, sound.index(b"a.reals")) + len(name)


def refusal(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_header(data, PATH)
    message = str(caught.value)
    assert message.startswith("model.gguf: ")
    assert "\n" not in message
    return message


def test_agrees_with_the_reader_of_the_gguf_package(sound: bytes, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "a.gguf"
    path.write_bytes(sound)
    oracle = gguf.GGUFReader(path)
    header = read_header(sound, PATH)
    expected = {name: field.contents() for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
    assert header.fields == expected
    assert [(name, info.kind, info.shape, info.offset, info.size_bytes) for name, info in header.tensors.items()] == [
        (tensor.name, tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1]), tensor.data_offset, tensor.n_bytes)
        for tensor in oracle.tensors
    ]


def test_sizes_of_types_are_those_of_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for code, (name, block, size) in TENSOR_TYPES.items():
        assert GGMLQuantizationType(code).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(code)] == (block, size)


def test_every_truncation_is_refused(sound: bytes) -> None:
    for cut in range(len(sound) - 64):  # the writer pads the last tensor, which no reader needs
        assert refusal(sound[:cut])


def test_what_is_wrong_is_said(sound: bytes) -> None:
    assert "is not a GGUF file" in refusal(b"GGML" + sound[4:])
    assert "is not a GGUF file" in refusal(b"")
    assert "ends inside its header" in refusal(sound[:100])
    assert "big-endian" in refusal(sound[:4] + sound[4:8][::-1] + sound[8:])
    assert "GGUF version 1 is not supported" in refusal(sound[:4] + struct.pack("<I", 1) + sound[8:])
    assert "does not hold all of the tensor 'two.weight'" in refusal(sound[:-64])
    place = entry_of(sound, b"one.weight")
    assert "9 dimensions" in refusal(sound[:place] + struct.pack("<I", 9) + sound[place + 4 :])
    kind = place + 4 + 16
    assert "has the type IQ2_XXS, which is not supported; supported are: F32" in refusal(
        sound[:kind] + struct.pack("<I", 16) + sound[kind + 4 :]
    )
    assert "has the type number 77" in refusal(sound[:kind] + struct.pack("<I", 77) + sound[kind + 4 :])
    assert "twice" in refusal(sound.replace(b"two.weight", b"one.weight"))
    assert "the key a.bool twice" in refusal(sound.replace(b"a.int8", b"a.bool"))
    assert "not UTF-8" in refusal(sound.replace("é😀".encode(), b"\xff" * 6))
    assert "has the name" in refusal(sound.replace(b"two.weight", b"two\nweight"))


@pytest.mark.parametrize("count", [2**17, 2**32, 2**60, 2**64 - 1])
def test_huge_counts_allocate_nothing(sound: bytes, count: int) -> None:
    huge = struct.pack("<Q", count)
    strings = sound.index(b"a.strings") + len(b"a.strings") + 8
    numbers = sound.index(b"a.numbers") + len(b"a.numbers") + 8
    key = 24
    dimension = entry_of(sound, b"one.weight") + 4
    for place in 8, 16, key, strings, numbers, strings + 8, dimension:
        tracemalloc.start()
        refusal(sound[:place] + huge + sound[place + 8 :])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_a_header_or_one_clear_error(sound: bytes, data: st.DataObject) -> None:
    damaged = bytearray(sound)
    places = st.integers(0, len(sound) - 200)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        damaged[place] = value
    with contextlib.suppress(InputError):
        assert isinstance(read_header(bytes(damaged), PATH), GgufHeader)
