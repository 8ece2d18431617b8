"""Files: read with clear errors, and written so that whoever reads them finds them whole, whatever happens."""
import json
import os
import secrets
import shutil
import zlib
from contextlib import contextmanager
from errno import EISDIR
from functools import reduce

SENTENCEPIECE = 'sentencepiece.bpe.model'             # the name that the XLM-R family uses


def read_json(path):
    return parse_object(read_file(path), path)


def parse_object(text, where):
    """The dict of a JSON text; `where` it stands is named in the ValueError for what is no such thing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f'{where} is not JSON: {e}') from e
    if not isinstance(found, dict):
        raise ValueError(f'{where} is no JSON object, {{"name": value, ...}}')
    return found


def read_file(path):
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder {path.parent} does not exist')
    if (path.parent / 'best').is_dir():
        raise FileNotFoundError(f'{path.parent} is the folder of a run; its model is {path.parent / "best"}')
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; an encoder or checkpoint folder needs it')
    return path.read_bytes()


def crc(parts):
    """CRC-32 of several bytes or arrays, as text."""
    return f'{reduce(lambda value, part: zlib.crc32(part, value), parts, 0):08x}'


@contextmanager
def filling(folder):
    """Gives a temporary folder beside `folder`, whose files take their places there when all are written, or never.

    A new folder appears at once with all its files. In one that is there, each is replaced at once, one after the
    other, so that whoever reads it then may find files of two times.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    temporary = folder.with_name(f'{folder.name}.{secrets.token_hex(4)}.tmp')     # others may be at the same
    temporary.mkdir(parents=True)
    try:
        with naming(folder):
            yield temporary
            for path in temporary.iterdir():
                sync(path)
                if (folder / path.name).is_dir():
                    raise IsADirectoryError(EISDIR, 'a folder stands where a file is to be written', folder / path.name)
        try:
            temporary.rename(folder)
        except OSError:                               # it is there, perhaps only just
            if not folder.is_dir():
                raise
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replacing(path):
    """Gives a temporary path beside `path`; what was written there takes its place at once, or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    try:
        with naming(path):
            yield temporary
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path):
    """Puts the path into the errors of a full disk, which do not say where it was."""
    try:
        yield
    except OSError as e:
        if e.errno and e.filename is None:
            e.filename = str(path)
        raise


def sync(path):
    """Waits until a file is on the disk, so that a new one never takes its place before it, even if the power fails."""
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())
