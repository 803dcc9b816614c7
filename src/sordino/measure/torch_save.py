"""How many bytes `torch.save(state_dict)` would write, from names, types and shapes alone: no tensor, no torch.

The IWSLT model-compression track ranks systems by that file, not by the safetensors that are downloaded. It is a zip
without compression (torch 2.9 to 2.13, caffe2/serialize/inline_container.cc and miniz):

    data.pkl, .format_version, .storage_alignment, byteorder, data/0 ... data/N-1, version, .data/serialization_id

each of them: local header (30 bytes, the name, padding that puts the data on a multiple of 64), the data, a data
descriptor (16 bytes, 24 where 4 GiB are passed); then 46 bytes and the name for each record once more, and 98 bytes of
end records. data.pkl is a pickle of protocol 2 that names every tensor once and every storage with it; tied tensors
share one storage. tests/measure/test_torch_save.py compares with torch.save, beyond 4 GiB too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sordino.checkpoint.reading import Tensor
from sordino.measure.size import COMPANION

ALIGNMENT = 64  # bytes; torch.utils.serialization.config.save.storage_alignment
LOCAL_HEADER, CENTRAL_HEADER = 30, 46  # bytes, each followed by the record's name
FIELD_HEADER = 4  # bytes: id and length of a zip extra field
DESCRIPTOR, DESCRIPTOR_64 = 16, 24  # bytes after a record's data
END_RECORDS = 56 + 20 + 22  # bytes: zip64 end, its locator, end of the central directory; torch writes all three
ZIP64_FROM = 0xFFFFFFFF  # sizes and offsets from here on need a zip64 field
PICKLE_BATCH = 1000  # items of a dict that one SETITEMS takes

STORAGES = {  # safetensors' name of a type -> the class that the pickle names, and bytes an element
    "F64": ("DoubleStorage", 8), "F32": ("FloatStorage", 4), "F16": ("HalfStorage", 2), "BF16": ("BFloat16Storage", 2),
    "I64": ("LongStorage", 8), "I32": ("IntStorage", 4), "I16": ("ShortStorage", 2), "I8": ("CharStorage", 1),
    "U8": ("ByteStorage", 1), "BOOL": ("BoolStorage", 1), "C64": ("ComplexFloatStorage", 8),
}  # fmt: skip


def torch_save_bytes(
    tensors: Mapping[str, Tensor],
    *,
    aliases: Mapping[str, str] | None = None,
    module: bool = False,
    silent: Iterable[str] = (),
    archive: str = "archive",
) -> int:
    """Bytes of torch.save({name: tensor}) for contiguous CPU tensors, each owning its storage.

    aliases: further names -> the name of the tensor they share their storage with (tied weights).
    module: the dict is `model.state_dict()`, an OrderedDict that carries a version for every module: those that the
    tensors' names imply, and the silent, which have no tensors (activations, dropout).
    archive: the file's name without its ending; "archive" where torch.save writes into a buffer.
    """
    names = dict(aliases or {})
    pickled = _Pickle().state_dict(tensors, names, module, silent)
    records = [("data.pkl", pickled), (".format_version", 1), (".storage_alignment", 2), ("byteorder", 6)]
    records += [(f"data/{index}", tensor.bytes) for index, tensor in enumerate(tensors.values())]
    records += [("version", 2), (".data/serialization_id", 40)]
    return _zip_bytes((f"{archive}/{name}", size) for name, size in records)


def _zip_bytes(records: Iterable[tuple[str, int]]) -> int:
    """Bytes of torch's zip of records (name, bytes of data)."""
    cursor, central = 0, 0
    for name, size in records:
        far, long = cursor >= ZIP64_FROM, size >= ZIP64_FROM
        zip64 = (FIELD_HEADER + 16 * long + 8 * far) if far or long else 0
        length = len(name.encode())
        start = cursor + LOCAL_HEADER + length + zip64 + FIELD_HEADER
        start += -start % ALIGNMENT
        cursor = start + size + ((DESCRIPTOR_64 if far or long else DESCRIPTOR) if size else 0)
        central += CENTRAL_HEADER + length + zip64
    return cursor + central + END_RECORDS


class _Pickle:
    """Counts the bytes of a protocol 2 pickle. Everything seen once is a BINGET (2 bytes, 5 from the 257th) later."""

    def __init__(self) -> None:
        self.memo: dict[str, int] = {}  # of what occurs again: index
        self.put = 0  # objects memoised so far

    def state_dict(
        self, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], module: bool, silent: Iterable[str]
    ) -> int:
        index = {name: i for i, name in enumerate(tensors)}
        count = 2 + 1  # PROTO, STOP
        count += self._ordered_dict() if module else 1 + self._memoise()
        total = len(tensors) + len(aliases)
        count += _dict_marks(total, exact=not module)
        for name, tensor in tensors.items():
            count += self._text(name) + self._tensor(tensor, index[name])
        for name, of in aliases.items():
            count += self._text(name) + self._tensor(tensors[of], index[of])
        if module:
            paths = [*_modules([*tensors, *aliases]), *silent]
            count += 1 + self._memoise() + self._text("_metadata") + 1 + 1  # EMPTY_DICT, SETITEM, BUILD
            count += self._ordered_dict() + _dict_marks(len(paths), exact=False)
            for path in paths:  # {'version': 1}
                count += self._text(path) + 1 + self._memoise() + self._once("version", self._plain("version")) + 2 + 1
        return count

    def _tensor(self, tensor: Tensor, index: int) -> int:
        """_rebuild_tensor_v2(("storage", class, key, "cpu", elements), 0, shape, stride, False, OrderedDict())."""
        storage, width = STORAGES[tensor.dtype]
        elements = tensor.bytes // width
        count = self._global("torch._utils", "_rebuild_tensor_v2") + 1 + 1  # two MARKs
        count += self._once("storage", self._plain("storage")) + self._global("torch", storage)
        count += self._once(f"key {index}", self._plain(str(index))) + self._once("cpu", self._plain("cpu"))
        count += _integer(elements) + 1 + self._memoise() + 1  # TUPLE, BINPERSID
        count += _integer(0) + self._tuple(tensor.shape) + self._tuple(_strides(tensor.shape)) + 1  # NEWFALSE
        count += self._ordered_dict()
        return count + 1 + self._memoise() + 1 + self._memoise()  # TUPLE, REDUCE

    def _ordered_dict(self) -> int:
        count = self._global("collections", "OrderedDict") + 1 + 1  # EMPTY_TUPLE, REDUCE
        return count + self._memoise()

    def _tuple(self, items: tuple[int, ...]) -> int:
        if not items:
            return 1
        marks = 1 if len(items) <= 3 else 2
        return sum(map(_integer, items)) + marks + self._memoise()

    def _text(self, text: str) -> int:
        return self._plain(text) + self._memoise()

    @staticmethod
    def _plain(text: str) -> int:
        return 1 + 4 + len(text.encode())

    def _global(self, module: str, name: str) -> int:
        return self._once(f"{module} {name}", 1 + len(module) + 1 + len(name) + 1)

    def _once(self, key: str, size: int) -> int:
        """The object itself the first time, a reference to the memo later."""
        if key in self.memo:
            return 2 if self.memo[key] < 256 else 5
        self.memo[key] = self.put
        return size + self._memoise()

    def _memoise(self) -> int:
        self.put += 1
        return 2 if self.put <= 256 else 5


def _integer(value: int) -> int:
    """BININT1, BININT2, BININT, or LONG1 with a byte of length."""
    if value < 2**8:
        return 2
    if value < 2**16:
        return 3
    return 5 if value < 2**31 else 2 + value.bit_length() // 8 + 1


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _dict_marks(items: int, *, exact: bool) -> int:
    """MARK and SETITEMS of every batch. exact: a plain dict, which C's pickler batches a little differently."""
    whole, rest = divmod(items, PICKLE_BATCH)
    if exact and items > 1:
        return 2 * (whole + 1)
    return 2 * whole + (0 if rest == 0 else 1 if rest == 1 else 2)


def _modules(names: Iterable[str]) -> list[str]:
    """Every module that the tensors' names imply, the model itself ('') first. What lies beside a quantized weight has
    longer names than the weight, and is of the same module."""
    paths = {"": None}
    for name in names:
        parts = COMPANION.sub("", name).split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            paths.setdefault(".".join(parts[:depth]))
    return list(paths)
