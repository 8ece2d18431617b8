"""Your own text: files, or folders of files, whose names give the language.

bo.txt            a document a line or, if several lines, over one in a hundred, are empty,
                  documents between empty lines
news.bo.jsonl     an object a line with `text`, perhaps `title`; also as MC2 has it, bo-*.jsonl
web.bo-zh.tsv     two columns, which translate each other, in the order of the name
"""
import re
from itertools import chain, groupby, islice
from pathlib import Path

from data.files import is_text, read_json_object, read_lines, read_pairs
from data.languages import check_script

NAMES = re.compile(r'(?!log\.jsonl)(?:.*\.)?([a-z]{2,3})\.(?:txt|jsonl)'
                   r'|(?:.*\.)?([a-z]{2,3})-(?!\2\.)([a-z]{2,3})\.tsv'
                   r'|(bo|ug|kk|mn)-.*\.jsonl')       # MC2's files


def languages(path):
    """('bo',) or ('bo', 'zh') from a file's name, or () if it names none."""
    match = NAMES.fullmatch(path.name)
    return tuple(filter(None, match.groups())) if match else ()


def fetch(source):
    """The files in `source` that name a language. source: files or folders, by commas."""
    if not source:
        raise FileNotFoundError('dataset=text: say where your files are with --data_from=PATH')
    files = set()
    for path in (Path(part).expanduser() for part in filter(None, str(source).split(','))):
        if not path.exists():
            raise FileNotFoundError(f'{path} does not exist')
        found = {file for file in (path, *path.rglob('*')) if file.is_file() and languages(file)}
        if not found:
            raise ValueError(f'{path}: no file is named like bo.txt, a.bo.jsonl, a.bo-zh.tsv')
        files |= found
    return sorted(files)


def documents(files):
    """(None, {language: text}) for each document or pair.

    Raises ValueError if a file has none, or if the first ones are in another language's script."""
    for path in files:
        names = languages(path)
        if path.suffix == '.tsv':
            rows = (columns for _, columns in read_pairs(path))
        else:
            read = read_txt if path.suffix == '.txt' else read_jsonl
            rows = ((text,) for text in read(path))
        first = list(islice(rows, 1000))
        if not first:
            raise ValueError(f'{path} has no text; fill it or move it away')
        for language, texts in zip(names, zip(*first)):
            check_script([text[:1000] for text in texts], language, path)
        for row in chain(first, rows):
            yield None, dict(zip(names, row))


def read_txt(path):
    """The documents of a .txt file."""
    n_with_text = last = 0
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            n_with_text, last = n_with_text + 1, n
    by_line = last - n_with_text <= max(1, last // 100)       # not counting those at the end
    for has_text, lines in groupby(read_lines(path), lambda line: bool(line.strip())):
        if has_text:
            yield from lines if by_line else ['\n'.join(lines)]


def read_jsonl(path):
    """The documents of a .jsonl file. Raises ValueError for one without a string `text`."""
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            document = read_json_object(line, f'{path}: line {n}')
            parts = document.get('title') or '', document.get('text')
            if not all(map(is_text, parts)):
                raise ValueError(f'{path}: line {n} has no string "text": {ascii(document):.60}')
            text = '\n'.join(filter(None, parts))
            if text.strip():
                yield text
