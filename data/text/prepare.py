"""Your own text: files or folders whose names say the language.

bo.txt            a document a line or, if more than one line in a hundred is empty, documents
                  between empty lines
news.bo.jsonl     an object a line with `text` and perhaps `title`
web.bo-zh.tsv     two columns, which translate each other, in the order of the name

`python -m data.text.prepare --from PATH --encoder FOLDER` shows how a vocabulary fits a corpus;
training does the same with --dataset=text --data_from=PATH.
"""
import re
from collections import Counter
from itertools import chain, groupby, islice
from pathlib import Path

from data.dataset import main
from data.languages import check_script
from data.files import is_text, read_json_object, read_lines, read_pairs, shorten

NAME = re.compile(r'(?:.*\.)?(?:([a-z]{2,3})\.(?:txt|jsonl)|([a-z]{2,3})-([a-z]{2,3})\.tsv)')


def languages(path):
    """('bo',) or ('bo', 'zh') from a file's name, or () where it names none."""
    match = NAME.fullmatch(path.name)
    found = tuple(filter(None, match.groups())) if match else ()
    if len(set(found)) < len(found):
        raise ValueError(f'{path}: its name says {found[0]} twice; a pair has two languages')
    return found


def fetch(source):
    """The files that name a language in `source`: a file or folder, or several, by commas."""
    if not source:
        raise FileNotFoundError('dataset=text: say where your files are with --data_from=PATH')
    files = set()
    for path in (Path(part).expanduser() for part in str(source).split(',')):
        if not path.exists():
            raise FileNotFoundError(f'{path} does not exist')
        files.update([path] if path.is_file() else filter(Path.is_file, path.rglob('*')))
    found = sorted(path for path in files if languages(path))
    if not found:
        raise FileNotFoundError(f'{source} has no file named like bo.txt, news.bo.jsonl or '
                                'web.bo-zh.tsv')
    others = sorted(path for path in files - {*found} if path.suffix in ('.txt', '.jsonl', '.tsv'))
    if others:
        names = ', '.join(path.name for path in others)
        print(f'not read, as the name says no language: {names}')
    return found


def documents(files):
    """(None, {language: text}) for each document or pair."""
    for path in files:
        yield from checked(READERS[path.suffix](path), languages(path), path)


def checked(rows, names, path):
    """(None, {language: text}) for each row, a tuple of texts in the languages `names`.

    Raises ValueError where there is none, or the first ones are in another language's script.
    """
    first = list(islice(rows, 1000))
    if not first:
        raise ValueError(f'{path} has no text; fill it or move it away')
    for language, texts in zip(names, zip(*first)):
        check_script([text[:1000] for text in texts], language, path)
    for row in chain(first, rows):
        yield None, dict(zip(names, row))


def read_txt(path):
    is_empty = Counter(not line.strip() for line in read_lines(path))
    if is_empty[True] * 100 <= is_empty.total():
        yield from ((line,) for line in read_lines(path) if line.strip())
        return
    for has_text, lines in groupby(read_lines(path), lambda line: bool(line.strip())):
        if has_text:
            yield ('\n'.join(lines),)


def read_jsonl(path):
    for n, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        document = read_json_object(line, f'{path}: line {n}')
        if 'text' not in document:
            fields = shorten(', '.join(map(ascii, document)))
            raise ValueError(f'{path}: line {n} has no "text"; its fields: {fields}')
        parts = [document.get('title') or '', document['text']]
        if not all(isinstance(part, str) and is_text(part) for part in parts):
            raise ValueError(f'{path}: line {n} has a "title" or "text" that is no string, '
                             f'{shorten(ascii(parts))}')
        text = '\n'.join(filter(None, parts))
        if text.strip():
            yield (text,)


def read_tsv(path):
    return (columns for _, columns in read_pairs(path, languages(path)))


READERS = {'.txt': read_txt, '.jsonl': read_jsonl, '.tsv': read_tsv}

if __name__ == '__main__':
    main('text')
