"""Examples of other forms, written as the .jsonl that data/examples.py reads.

    python -m data.convert cmrc2018_train.json --out cmrc.zh.jsonl

.json, .jsonl   CMRC 2018 (aclanthology.org/D19-1600) and others in SQuAD's form, such as KazQAD
.csv            TibetanQA (github.com/CMLI-NLP/TibetanQA) and others with a row of names
.txt            LCSTS (aclanthology.org/D15-1229) as published: <doc>, <summary>, <short_text>
"""
import argparse
import csv
import json
import re
from pathlib import Path

from config import cli
from data.examples import texts_by_field
from data.files import atomic_write, read_lines

FIELD = re.compile(r'<(summary|short_text)>(.*?)</\1>', re.DOTALL)


def read_squad(path):
    """Yields (which question, {field: value}) of a .json file, or of a .jsonl line by line."""
    lines = list(read_lines(path))
    texts = lines if path.suffix == '.jsonl' else ['\n'.join(lines)]
    try:
        found = list(questions([json.loads(text) for text in texts if text.strip()], {}))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path} is not JSON in SQuAD's form: {e}") from e
    return ((f'question {n}', fields) for n, fields in enumerate(found, 1))


def questions(node, around):
    """Yields the innermost objects of nested data, paragraphs, qas, with the fields around them."""
    if isinstance(node, list):
        for child in node:
            yield from questions(child, around)
    else:
        fields = {**around, **node}
        inner = [fields.pop(name) for name in ('data', 'paragraphs', 'qas') if name in fields]
        yield from questions(inner, fields) if inner else [fields]


def read_csv(path):
    """Yields (where, {field: string}) for each row but the first."""
    rows = csv.DictReader((line + '\n' for line in read_lines(path)), strict=True)
    try:
        for row in rows:
            if None in row:
                raise csv.Error('more cells than the header')
            yield f'line {rows.line_num}', row
    except csv.Error as e:
        raise ValueError(f'{path}: line {rows.reader.line_num}: {e}; a text with a comma or a '
                         'quote stands in "...", with its quotes doubled') from e


def read_lcsts(path):
    """Yields (its last line, {field: string}) for each <doc>."""
    document = ''
    for n, line in enumerate(read_lines(path), 1):
        document += line + '\n'
        if line.strip() == '</doc>':
            fields, document = FIELD.findall(document), ''
            if [name for name, _ in fields] != ['summary', 'short_text']:
                raise ValueError(f'{path}: the <doc> that ends in line {n} has not one <summary> '
                                 'and then one <short_text>')
            yield f'line {n}', {name: text.strip() for name, text in fields}
    if document.strip():
        raise ValueError(f'{path}: the last <doc> has no end')


READERS = {'.json': read_squad, '.jsonl': read_squad, '.csv': read_csv, '.txt': read_lcsts}


def main(argv):
    parser = argparse.ArgumentParser('python -m data.convert', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', type=Path)
    parser.add_argument('--out', required=True, type=Path, help='such as NAME.zh.jsonl')
    args, n = parser.parse_args(argv), 0
    with atomic_write(args.out) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        for path in args.files:
            if path.suffix not in READERS:
                raise ValueError(f'{path}: files are {" ".join(READERS)}')
            for n, (place, record) in enumerate(READERS[path.suffix](path), n + 1):
                fields = texts_by_field(record, f'{path}: {place}')
                kept = {field: record[field] for field in fields}
                file.write(json.dumps(kept, ensure_ascii=False) + '\n')
    print(f'{args.out}: {n:,} examples')


if __name__ == '__main__':
    cli.run(main)
