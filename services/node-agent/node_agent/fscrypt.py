"""Encryption of a folder by the kernel itself (fscrypt, policy version 2): names and contents, AES-256.

The key of each volume is derived from that of the node where it was made (`contracts.copies.volume_key`) and
lives in the kernel while the volume is mounted; on the disk there is only ciphertext. See linux/fscrypt.h for
the structures.
"""

import fcntl
import os
import struct
from pathlib import Path

from contracts.errors import ProviderFailed

_ADD_KEY = 0xC0506617
_SET_POLICY = 0x800C6613
_GET_POLICY = 0xC0096616
_BY_IDENTIFIER = 2
_CONTENTS_AES_256_XTS, _NAMES_AES_256_CTS = 1, 4
_PAD_32 = 3
_VERSION = 2


def protect(folder: Path, key: str) -> None:
    """An empty folder becomes an encrypted one; one that is encrypted becomes readable. `key`: in
    hexadecimal."""
    raw = bytes.fromhex(key)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        identifier = _add_key(descriptor, raw)
        policy = struct.pack(
            "=BBBB4s16s",
            _VERSION,
            _CONTENTS_AES_256_XTS,
            _NAMES_AES_256_CTS,
            _PAD_32,
            bytes(4),
            identifier,
        )
        # Setting the policy a folder has already changes nothing.
        fcntl.ioctl(descriptor, _SET_POLICY, policy)
    except OSError as error:
        raise ProviderFailed(f"{folder.parent.name} cannot be encrypted: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _add_key(descriptor: int, raw: bytes) -> bytes:
    specifier = struct.pack("=II32s", _BY_IDENTIFIER, 0, bytes(32))
    request = bytearray(specifier + struct.pack("=II8I", len(raw), 0, *[0] * 8) + raw)
    fcntl.ioctl(descriptor, _ADD_KEY, request)
    return bytes(request[8:24])
