"""Reading text files with clear errors, and writing files atomically: whole or not at all."""
import json
import os
import re
import secrets
import shutil
import sys
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError

SENTENCEPIECE = 'sentencepiece.bpe.model'         # the file's name in the XLM-R family


def read_lines(path):
    """The lines of a UTF-8 file, or of standard input for `-`. Raises ValueError if not UTF-8."""
    with nullcontext(sys.stdin.buffer) if path == '-' else open(path, 'rb') as file:
        for n, line in enumerate(file, 1):
            try:
                yield line.decode('utf-8').removeprefix('\ufeff').rstrip('\r\n')
            except UnicodeDecodeError as e:
                raise ValueError(f'{path}: line {n} is not UTF-8; convert the file: iconv -f '
                                 'GB18030 (or UTF-16) -t UTF-8 OLD > NEW') from e


def read_pairs(path):
    """(line number, [string, string]) of each line with text in a .tsv. Raises ValueError."""
    for n, line in enumerate(read_lines(path), 1):
        columns = line.split('\t')
        if line and len(columns) != 2:
            raise ValueError(f'{path}: line {n} has {len(columns)} columns instead of two, '
                             'separated by a tab')
        if line.strip():
            yield n, columns


def read_json_object(content, where):
    """The dict in JSON (str or bytes). Raises ValueError that names `where`, its place."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise ValueError(f'{where} is not JSON: {e}') from e
    if not isinstance(found, dict):
        raise ValueError(f'{where} is not a JSON object, {{"name": value, ...}}')
    return found


def is_text(value):
    """Whether a value from JSON is a string without lone surrogates, which are not UTF-8."""
    return isinstance(value, str) and not re.search('[\ud800-\udfff]', value)


@contextmanager
def atomic_dir(folder):
    """Gives a temporary folder. Its files move to `folder` once all are written; else none does.

    A new folder appears at once; in an existing one each file is replaced atomically. Safetensors
    files get a checksum."""
    folder = folder.resolve()                     # a link may lead to another file system
    temporary = folder.with_name(f'{folder.name}.{secrets.token_hex(4)}.tmp')
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            if path.suffix == '.safetensors':
                path.chmod(temporary.stat().st_mode & 0o666)          # the library's is 0o600
                add_checksum(path)
            sync(path)
        try:
            temporary.rename(folder)
        except OSError:                           # it exists, perhaps since a moment ago
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
    except SafetensorError as e:                  # not an OSError, even for a full disk
        raise OSError(f'{folder} cannot be written: {e}') from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path):
    """Waits until a file is on the disk, so that no power failure leaves an empty one in place."""
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


def add_checksum(path):
    """Fills in `crc32` in the metadata of a safetensors file that has it."""
    value, _, position = checksum(path)
    with open(path, 'rb+') as file:
        file.seek(position)
        file.write(value)


def check_folder(folder):
    """Raises ValueError for a safetensors file that has changed since it was written."""
    for path in Path(folder).glob('*.safetensors'):
        value, noted, _ = checksum(path)
        if noted not in (value, b'00000000'):
            raise ValueError(f'{path} is damaged: its checksum does not match; take a whole copy')


def checksum(path):
    """CRC-32 of a safetensors file without its `crc32` field, the field's value, its position."""
    with open(path, 'rb') as file:
        file.seek(8)                              # past the header's length
        head = file.read(2**20)                   # metadata comes first
        noted = re.search(rb'"crc32":"(.{8})"', head)
        if not noted:
            return b'', b'00000000', 0
        value = zlib.crc32(head[:noted.start(1)] + head[noted.end(1):])
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return f'{value:08x}'.encode(), noted[1], 8 + noted.start(1)
