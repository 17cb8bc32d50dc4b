"""Bytes: LEB128, protobuf fields, snappy blocks, CRC-32C, float bits. Written from the specifications, shares nothing with the server.

libsnappy and isa-l are used through ctypes where speed matters, each checked once against the few lines of Python here.
"""
import ctypes
import ctypes.util
import struct

STALE_NAN = 0x7FF0000000000002
NORMAL_NAN = 0x7FF8000000000001


def bits(value):
    """A float's bit pattern: how values are compared everywhere in these tests."""
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def unbits(b):
    return struct.unpack("<d", struct.pack("<Q", b))[0]


def text(raw):
    """Label text; what is not UTF-8 survives as surrogates."""
    return bytes(raw).decode("utf-8", "surrogateescape")


def raw(s):
    return s.encode("utf-8", "surrogateescape")


# ---- varints ----

def uvarint(x):
    out = bytearray()
    while x >= 0x80:
        out.append(x & 0x7F | 0x80)
        x >>= 7
    out.append(x)
    return bytes(out)


def read_uvarint(b, i):
    x = shift = 0
    while True:
        if i >= len(b) or shift >= 70:
            raise ValueError(f"truncated varint at {i}")
        c = b[i]
        i += 1
        x |= (c & 0x7F) << shift
        if c < 0x80:
            return x, i
        shift += 7


def unzigzag(u):
    return (u >> 1) ^ -(u & 1)


def read_varint(b, i):
    u, i = read_uvarint(b, i)
    return unzigzag(u), i


def int64(u):
    """A protobuf int64 from its varint."""
    return u - (1 << 64) if u >= 1 << 63 else u


# ---- protobuf ----

def pb_len(field, content):
    return uvarint(field << 3 | 2) + uvarint(len(content)) + content


def pb_int(field, value):
    return uvarint(field << 3) + uvarint(value & 0xFFFFFFFFFFFFFFFF)


def pb_sint(field, value):
    return uvarint(field << 3) + uvarint(((value << 1) ^ (value >> 63)) & 0xFFFFFFFFFFFFFFFF)


def pb_bits(field, b):
    return uvarint(field << 3 | 1) + struct.pack("<Q", b)


def pb_fields(b):
    """Yields (field, wire type, value): int for 0, 1, 5, memoryview for 2."""
    b = memoryview(b)
    i = 0
    while i < len(b):
        tag, i = read_uvarint(b, i)
        wire = tag & 7
        if wire == 0:
            value, i = read_uvarint(b, i)
        elif wire == 1:
            value, i = struct.unpack_from("<Q", b, i)[0], i + 8
        elif wire == 2:
            n, i = read_uvarint(b, i)
            value, i = b[i:i + n], i + n
            if len(value) != n:
                raise ValueError("length beyond the end")
        elif wire == 5:
            value, i = struct.unpack_from("<I", b, i)[0], i + 4
        else:
            raise ValueError(f"wire type {wire}")
        yield tag >> 3, wire, value


def packed_varints(wire, value):
    if wire == 0:
        return [value]
    out, i = [], 0
    while i < len(value):
        x, i = read_uvarint(value, i)
        out.append(x)
    return out


def packed_doubles(wire, value):
    return [value] if wire == 1 else list(struct.unpack(f"<{len(value) // 8}Q", value))


# ---- CRC-32C ----

def _crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_TABLE = _crc_table()


def _crc32c_plain(data):
    crc = 0xFFFFFFFF
    for c in data:
        crc = _TABLE[(crc ^ c) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _load(name, check):
    try:
        lib = ctypes.CDLL(ctypes.util.find_library(name) or f"lib{name}.so")
        return lib if check(lib) else None
    except OSError:
        return None


def _isal_ok(lib):
    lib.crc32_iscsi.restype = ctypes.c_uint
    lib.crc32_iscsi.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint]
    return lib.crc32_iscsi(b"123456789", 9, 0xFFFFFFFF) ^ 0xFFFFFFFF == _crc32c_plain(b"123456789") == 0xE3069283


_ISAL = _load("isal", _isal_ok)


def crc32c(data):
    data = bytes(data)
    if _ISAL:
        return _ISAL.crc32_iscsi(data, len(data), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return _crc32c_plain(data)


# ---- snappy, block format ----

def snappy_literal(data):
    """A valid block of literals only."""
    out = [uvarint(len(data))]
    for i in range(0, len(data), 65536):
        piece = data[i:i + 65536]
        n = len(piece) - 1
        out.append(bytes([n << 2]) if n < 60 else bytes([61 << 2, n & 0xFF, n >> 8]))
        out.append(piece)
    return b"".join(out)


def _snappy_decode_plain(b):
    n, i = read_uvarint(b, 0)
    out = bytearray()
    while i < len(b):
        tag = b[i]
        i += 1
        kind = tag & 3
        if kind == 0:
            size = tag >> 2
            if size >= 60:
                extra = size - 59
                size = int.from_bytes(b[i:i + extra], "little")
                i += extra
            size += 1
            out += b[i:i + size]
            i += size
            continue
        if kind == 1:
            size, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | b[i]
            i += 1
        else:
            width = 2 if kind == 2 else 4
            size, offset = (tag >> 2) + 1, int.from_bytes(b[i:i + width], "little")
            i += width
        if not 0 < offset <= len(out):
            raise ValueError("snappy: copy from outside")
        for _ in range(size):
            out.append(out[-offset])
    if len(out) != n:
        raise ValueError("snappy: wrong length")
    return bytes(out)


def _snappy_ok(lib):
    sizes = ctypes.POINTER(ctypes.c_size_t)
    for name, args in (("compress", [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, sizes]),
                       ("uncompress", [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, sizes]),
                       ("uncompressed_length", [ctypes.c_char_p, ctypes.c_size_t, sizes])):
        getattr(lib, "snappy_" + name).argtypes = args
    lib.snappy_max_compressed_length.argtypes = [ctypes.c_size_t]
    lib.snappy_max_compressed_length.restype = ctypes.c_size_t
    probe = b"abcabcabcabcabcabcabcabc" * 40 + bytes(range(256))
    return _snappy_decode_plain(_compress(lib, probe)) == probe


def _compress(lib, data):
    size = ctypes.c_size_t(lib.snappy_max_compressed_length(len(data)))
    out = ctypes.create_string_buffer(size.value)
    if lib.snappy_compress(data, len(data), out, ctypes.byref(size)) != 0:
        raise ValueError("snappy: compress failed")
    return out.raw[:size.value]


_SNAPPY = _load("snappy", _snappy_ok)


def snappy(data):
    return _compress(_SNAPPY, bytes(data)) if _SNAPPY else snappy_literal(bytes(data))


def unsnappy(data):
    data = bytes(data)
    if not _SNAPPY:
        return _snappy_decode_plain(data)
    size = ctypes.c_size_t()
    if _SNAPPY.snappy_uncompressed_length(data, len(data), ctypes.byref(size)) != 0:
        raise ValueError("snappy: no length")
    out = ctypes.create_string_buffer(max(size.value, 1))
    if _SNAPPY.snappy_uncompress(data, len(data), out, ctypes.byref(size)) != 0:
        raise ValueError("snappy: damaged")
    return out.raw[:size.value]
