"""Safetensors: an independent reader agrees, and a header that lies is refused before anything is read."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.errors import ConfigurationError, DataError
from consilium.federation.parameters import Schema, compute_digest, split_local
from consilium.federation.tensors import Tensors, encode_tensors, write_tensors
from tests.federation.toys import build_model, same_bits


def craft(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_an_independent_reader_reads_what_we_write() -> None:
    model = build_model() | {"double": np.arange(3.0), "half": np.ones((0, 2), np.float16)}
    assert same_bits(safetensors.numpy.load(encode_tensors(model, {"a": "b"})), model)


def test_we_read_what_an_independent_writer_writes() -> None:
    model = build_model()
    tensors = Tensors(safetensors.numpy.save(model, {"key": "text"}))
    assert same_bits(dict(tensors), model)
    assert tensors.metadata == {"key": "text"}
    assert tensors.schema == Schema.of(model)


def test_a_file_streamed_array_by_array_equals_the_byte_string(tmp_path: Path) -> None:
    model = build_model()
    write_tensors(tmp_path / "m.safetensors", Schema.of(model), reversed(list(model.items())))
    assert (tmp_path / "m.safetensors").read_bytes() == encode_tensors(model)
    assert same_bits(dict(Tensors(tmp_path / "m.safetensors")), model)


def test_a_missing_or_misshapen_array_leaves_no_file(tmp_path: Path) -> None:
    model = build_model()
    with pytest.raises(DataError, match="missing"):
        write_tensors(tmp_path / "m", Schema.of(model), list(model.items())[1:])
    wrong = model | {"scale": np.zeros(1, np.float32)}
    with pytest.raises(DataError, match="scale must be"):
        write_tensors(tmp_path / "m", Schema.of(model), wrong.items())
    assert list(tmp_path.iterdir()) == []


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "at least 8 bytes"),
        (craft({}, length=10 * 2**30), "header may have"),
        (craft(b"[]"), "JSON object"),
        (craft(b"\xff\xfe"), "must be JSON"),
        (craft(b"[" * 100000), "must be JSON"),
        (craft(b'{"a":1,"a":1}'), "unique keys"),
        (craft({"__metadata__": {"k": 1}}), "metadata"),
        (craft({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "must have dtype"),
        (craft({"a": {**F32, "dtype": "I64"}}, bytes(4)), "must be one of"),
        (craft({"a": {**F32, "dtype": ["F32"]}}, bytes(4)), "must be one of"),
        (craft({"a": {**F32, "shape": [-1]}}, bytes(4)), "whole numbers"),
        (craft({"a": {**F32, "shape": [1.0]}}, bytes(4)), "whole numbers"),
        (craft({"a": {**F32, "shape": [True]}}, bytes(4)), "whole numbers"),
        (craft({"a": {**F32, "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(4)), "take"),
        (craft({"a": {**F32, "shape": [2]}}, bytes(4)), "needs 8 bytes"),
        (craft({"a": F32, "b": F32}, bytes(4)), "start at byte"),
        (craft({"a": F32}, bytes(8)), "8 are there"),
        (craft({"a": {**F32, "data_offsets": [4, 8]}}, bytes(8)), "start at byte 0"),
    ],
)
def test_a_header_that_lies_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Tensors(content)


def test_more_bytes_than_allowed_are_refused_before_the_header_is_read() -> None:
    with pytest.raises(DataError, match="at most 100 bytes; found 200"):
        Tensors(bytes(200), max_bytes=100)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_data_error(content: bytes) -> None:
    for body in (content, craft(content)):
        try:
            dict(Tensors(body))
        except DataError:
            continue


def test_the_digest_sees_every_bit_name_and_shape() -> None:
    model = build_model()
    digests = {compute_digest(model)}
    for name in model:
        changed = {n: np.array(a) for n, a in model.items()}
        changed[name].reshape(-1).view(np.uint8)[-1] ^= 1
        digests.add(compute_digest(changed))
    digests.add(compute_digest({n + "x": a for n, a in model.items()}))
    digests.add(compute_digest(model | {"scale": model["scale"].reshape(1)}))
    digests.add(compute_digest(model | {"scale": -0.0 * model["scale"]}))
    digests.add(compute_digest(model | {"scale": 0.0 * model["scale"]}))
    assert len(digests) == len(model) + 5


def test_integer_arrays_do_not_travel() -> None:
    with pytest.raises(ConfigurationError, match="int64"):
        Schema.of({"counter": np.zeros(1, np.int64)})


def test_local_names_are_split_off_by_pattern() -> None:
    travelling, local = split_local(build_model(), ("*.norm.*",))
    assert set(local) == {"encoder.0.norm.weight"}
    assert travelling.keys() | local.keys() == build_model().keys()
