"""Your own text: files or folders whose names say the language, as `bo.txt`, `news.bo.jsonl` or `web.bo-zh.tsv`.

.txt: a document a line or, in a file of which more than one line in a hundred is empty, documents between empty
lines. .jsonl: an object a line with `text` and perhaps `title`. .tsv: two columns, which translate each other, in the
order of the name. `python -m data.text.prepare --from PATH --encoder FOLDER` shows how a corpus fares; training does
the same with --dataset=text --data_from=PATH.
"""
import re
from collections import Counter
from itertools import chain, groupby, islice
from pathlib import Path

from config import is_text, shorten
from data.files import parse_object
from data.languages import check_script
from data.tokens import main, read_lines, read_pairs

NAME = re.compile(r'(?:.*\.)?([a-z]{2,3})\.(?:txt|jsonl)|(?:.*\.)?([a-z]{2,3})-([a-z]{2,3})\.tsv')


def languages(path):
    """('bo',) or ('bo', 'zh') from a file's name, or () where it names none."""
    match = NAME.fullmatch(path.name)
    found = tuple(lang for lang in match.groups() if lang) if match else ()
    if len(set(found)) < len(found):
        raise ValueError(f'{path}: its name says {found[0]} twice; a pair has two languages')
    return found


def fetch(source):
    """The files of `source` (a file, a folder, or several separated by commas) that name a language, sorted."""
    if not source:
        raise FileNotFoundError('dataset=text: say where your files are with --data_from=PATH')
    paths = [Path(part).expanduser() for part in str(source).split(',')]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f'{path} does not exist')
    files = sorted({f for p in paths for f in ([p] if p.is_file() else p.rglob('*')) if f.is_file()})
    found = [f for f in files if languages(f)]
    if not found:
        raise FileNotFoundError(f'{source} has no file named like bo.txt, news.bo.jsonl or web.bo-zh.tsv')
    if ignored := [f.name for f in files if f not in found and f.suffix in ('.txt', '.jsonl', '.tsv')]:
        print(f'not read, as the name says no language: {", ".join(ignored)}')
    return found


def documents(files):
    """(None, {language: text}) for each document or pair."""
    for path in files:
        langs = languages(path)
        texts = ((columns for _, columns in read_pairs(path, langs)) if path.suffix == '.tsv' else
                 (plain if path.suffix == '.txt' else objects)(path))
        yield from checked(texts, langs, path)


def checked(texts, langs, path):
    """(None, {language: text}) for each tuple of texts. Raises ValueError where there is none, or the first ones are
    in the script of another language."""
    first = list(islice(texts, 1000))
    if not first:
        raise ValueError(f'{path} has no text; fill it or move it away')
    for language, side in zip(langs, zip(*first)):
        check_script([text[:1000] for text in side], language, path)
    for row in chain(first, texts):
        yield None, dict(zip(langs, row))


def plain(path):
    is_empty = Counter(not line.strip() for line in read_lines(path))
    if is_empty[True] * 100 <= is_empty.total():
        yield from ((line,) for line in read_lines(path) if line.strip())
        return
    for has_text, lines in groupby(read_lines(path), lambda line: bool(line.strip())):
        if has_text:
            yield ('\n'.join(lines),)


def objects(path):
    for n, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        document = parse_object(line, f'{path}: line {n}')
        if 'text' not in document:
            raise ValueError(f'{path}: line {n} has no "text"; its fields: {shorten(", ".join(map(ascii, document)))}')
        parts = [document.get('title') or '', document.get('text')]
        if not all(isinstance(part, str) and is_text(part) for part in parts):
            raise ValueError(f'{path}: line {n} has a "title" or "text" that is no text, {shorten(ascii(parts))}')
        text = '\n'.join(filter(None, parts))
        if text.strip():
            yield (text,)


if __name__ == '__main__':
    main('text')
