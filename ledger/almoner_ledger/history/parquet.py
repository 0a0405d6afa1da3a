"""Entries as Parquet, by pyarrow: typed columns, zstd, a row group for each batch.

Boundary: imported only where Parquet is asked for, because pyarrow is an extra (`almoner[export]`).
"""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from almoner_core.wire import Entry
from almoner_ledger.history import entries
from almoner_ledger.history.exported import COLUMNS, MOMENTS, Rows

DOLLARS: Final = pa.decimal128(28, 9)
MOMENT: Final = pa.timestamp("ms", tz="UTC")
_NANO: Final = pa.scalar(Decimal("0.000000001"), pa.decimal128(9, 9))
_INTEGERS: Final = (int, int | None)


def _type(name: str) -> Any:
    if name in MOMENTS:
        return MOMENT
    return pa.int64() if Entry.model_fields[name].annotation in _INTEGERS else pa.string()


TYPES: Final = {name: _type(name) for name in entries.COLUMNS}
SCHEMA: Final = pa.schema(
    [pa.field(MOMENTS.get(name, name), kind) for name, kind in TYPES.items()] + [pa.field("cost_usd", DOLLARS)]
)


class _Sink:
    """A stream as pyarrow wants it, that can be cut off: its writer ends a file well even when it is dropped."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream: IO[bytes] | None = stream
        self.closed = False

    def write(self, data: bytes) -> int:
        if self._stream is None:
            raise OSError("abandoned")
        return self._stream.write(data)

    def flush(self) -> None:
        """Do nothing: the stream's owner flushes it."""

    def close(self) -> None:
        """Do nothing: the stream's owner closes it."""

    def cut(self) -> None:
        self._stream = None


class ParquetWriter:
    """Writes batches as row groups."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._sink = _Sink(stream)
        self._writer = pq.ParquetWriter(self._sink, SCHEMA, compression="zstd")

    def write(self, rows: Rows) -> None:
        """Write some more."""
        if not rows:
            return
        arrays = []
        for kind, values in zip(TYPES.values(), zip(*rows, strict=True), strict=True):
            array = pa.array(values, pa.int64() if kind == MOMENT else kind)
            arrays.append(array.cast(MOMENT) if kind == MOMENT else array)
        nanos = arrays[entries.COLUMNS.index("cost_nanos")]
        # An integer times a decimal is exact.
        arrays.append(pc.multiply(nanos.cast(pa.decimal128(19, 0)), _NANO).cast(DOLLARS))
        self._writer.write_table(pa.Table.from_arrays(arrays, names=[*COLUMNS]), row_group_size=len(rows))

    def close(self) -> None:
        """Write what is left: without it, the file is none."""
        self._writer.close()

    def abandon(self) -> None:
        """Write no more: a file without its end is none, and shows that it is not whole."""
        self._sink.cut()
        with contextlib.suppress(Exception):
            self._writer.close()
