"""Safetensors read one array at a time, bounds checked before anything is allocated; written as a stream.

The layout (eight bytes of header length, a JSON header, the arrays) is read here by hand for two reasons: an
update from outside is judged by its header alone, and a model of any size passes through one array's memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilium.errors import DataError
from consilium.federation.durable import replacing
from consilium.federation.parameters import DTYPES, MAX_DIMENSIONS, Schema, TensorSpec
from consilium.types import Array

MAX_HEADER_BYTES = 8 * 2**20
CODES = {"F16": "float16", "F32": "float32", "F64": "float64"}
CODE_OF = {name: code for code, name in CODES.items()}
METADATA = "__metadata__"


class Tensors(Mapping[str, Array]):
    """A safetensors file or byte string as a read-only mapping; an array is read when it is asked for.

    Args:
        source: The file, or its content in memory (read-only, as the arrays are views of it).
        max_bytes: Refuse anything larger; None for our own files.

    Raises:
        DataError: If the header is too long, not JSON, repeats a name, or does not describe exactly the bytes
            that are there.
    """

    def __init__(self, source: Path | bytes | memoryview, *, max_bytes: int | None = None) -> None:
        self.source = source
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if max_bytes is not None and size > max_bytes:
            raise DataError(f"tensors: at most {max_bytes} bytes; found {size}.")
        if size < 8:
            raise DataError(f"tensors: at least 8 bytes; found {size}.")
        length = int.from_bytes(self._read(0, 8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            bound = min(MAX_HEADER_BYTES, size - 8)
            raise DataError(f"tensors: the header may have {bound} bytes; it says {length}.")
        self._data_start = 8 + length
        header = parse_strict_json(self._read(8, length))
        self.metadata = _check_metadata(header.pop(METADATA, {}))
        self._places = {name: _check_place(name, entry) for name, entry in header.items()}
        _check_cover(self._places, size - self._data_start)

    @property
    def schema(self) -> Schema:
        """Names, shapes and kinds, from the header alone."""
        return Schema(tuple((name, self._places[name][0]) for name in sorted(self._places)))

    def __getitem__(self, name: str) -> Array:
        spec, start = self._places[name]
        raw = self._read(self._data_start + start, spec.nbytes)
        return np.frombuffer(raw, DTYPES[spec.dtype]).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def _read(self, start: int, length: int) -> bytes | memoryview:
        if not isinstance(self.source, Path):
            return memoryview(self.source)[start : start + length]
        with self.source.open("rb") as file:
            file.seek(start)
            found = file.read(length)
        if len(found) != length:
            raise DataError(
                f"tensors: {length} bytes from {start} expected; the file ends after {len(found)}."
            )
        return found


def parse_strict_json(raw: bytes | memoryview) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinities.

    Raises:
        DataError: If it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(bytes(raw), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as fault:
        raise DataError("header: must be JSON with unique keys and finite numbers; it is not.") from fault
    if not isinstance(value, dict):
        raise DataError(f"header: must be a JSON object; found {type(value).__name__}.")
    return value


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DataError("tensors: metadata must map texts to texts; it does not.")
    return metadata


def _check_place(name: str, entry: Any) -> tuple[TensorSpec, int]:
    """The spec and the start of one array, or a DataError."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"tensors: entry {name[:80]!r} must have dtype, shape and data_offsets; it has not.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        whole = isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)
        if not whole or len(numbers) > MAX_DIMENSIONS:
            raise DataError(
                f"tensors: lengths and offsets of {name[:80]!r} must be whole numbers; they are not."
            )
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in CODES:
        raise DataError(
            f"tensors: {name[:80]!r} must be one of {sorted(CODES)}; found {str(entry['dtype'])[:20]!r}."
        )
    spec = TensorSpec(tuple(shape), CODES[entry["dtype"]])
    if len(offsets) != 2 or offsets[1] - offsets[0] != spec.nbytes:
        raise DataError(f"tensors: {name[:80]!r} needs {spec.nbytes} bytes; its offsets are {offsets}.")
    return spec, offsets[0]


def _check_cover(places: dict[str, tuple[TensorSpec, int]], size: int) -> None:
    """The arrays lie side by side and fill the file: nothing is hidden, nothing overlaps."""
    end = 0
    for spec, start in sorted(places.values(), key=lambda place: (place[1], place[0].nbytes)):
        if start != end:
            raise DataError(f"tensors: an array must start at byte {end}; one starts at {start}.")
        end += spec.nbytes
    if end != size:
        raise DataError(f"tensors: the arrays take {end} bytes; {size} are there.")


def encode_header(schema: Schema, metadata: Mapping[str, str]) -> bytes:
    """The eight length bytes and the JSON header; equal input gives equal bytes."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    # Wider kinds first, so that every array starts at a multiple of its own width.
    for name, spec in in_file_order(schema):
        entry = {
            "dtype": CODE_OF[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, start + spec.nbytes],
        }
        header[name] = entry
        start += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_file_order(schema: Schema) -> list[tuple[str, TensorSpec]]:
    """The order in which arrays follow the header."""
    return sorted(schema.tensors, key=lambda item: (-DTYPES[item[1].dtype].itemsize, item[0]))


def encode_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors byte string; equal input gives equal bytes."""
    schema = Schema.of(tensors)
    parts: list[bytes | memoryview] = [encode_header(schema, metadata or {})]
    parts += [_raw(tensors[name], spec) for name, spec in in_file_order(schema)]
    return b"".join(parts)


def write_tensors(
    path: Path,
    schema: Schema,
    tensors: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file array by array, durably: a temporary file, fsync, rename, fsync of the folder.

    Args:
        path: The file; it appears whole or not at all.
        schema: What will be written.
        tensors: (name, array) in any order, each name of the schema once.
        metadata: Texts for the header.

    Raises:
        DataError: If an array does not fit the schema, or one is missing.
    """
    head = encode_header(schema, metadata or {})
    starts, end = {}, len(head)
    for name, spec in in_file_order(schema):
        starts[name], end = end, end + spec.nbytes
    specs = dict(schema.tensors)
    with replacing(path) as file:
        file.write(head)
        for name, array in tensors:
            start, spec = starts.pop(name), specs[name]
            if (array.shape, array.dtype.name) != (spec.shape, spec.dtype):
                raise DataError(
                    f"{path.name}: {name} must be {spec.dtype} {spec.shape}; found {array.dtype} "
                    f"{array.shape}."
                )
            file.seek(start)
            file.write(_raw(array, spec))
        if starts:
            raise DataError(f"{path.name}: arrays are missing, first {min(starts)}.")


def _raw(array: Array, spec: TensorSpec) -> memoryview:
    little = np.ascontiguousarray(array, DTYPES[spec.dtype])
    return little.reshape(-1).view(np.uint8).data
