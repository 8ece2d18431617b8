"""Questions and answers in other forms, written as the .jsonl that data/examples.py reads.

    python -m data.convert cmrc2018_train.json --out cmrc.zh.jsonl

.json, .jsonl   CMRC 2018 (aclanthology.org/D19-1600) and others in SQuAD's form, such as KazQAD
.csv            TibetanQA (github.com/CMLI-NLP/TibetanQA) and others with a row of names
"""
import argparse
import csv
import json
from pathlib import Path

from config import cli
from data.files import atomic_write, read_lines

NAMES = {'query_text': 'question', '问题': 'question', 'context_text': 'context',
         '段落': 'context', 'answers': 'answer', '答案': 'answer'}


def read(path):
    """The questions of a file, as dicts with all their fields."""
    lines = [line + '\n' for line in read_lines(path)]
    if path.suffix == '.csv':
        return csv.DictReader(lines, strict=True)
    texts = lines if path.suffix == '.jsonl' else [''.join(lines)]
    return innermost([json.loads(text) for text in texts if text.strip()], {})


def innermost(node, around):
    """Yields the innermost dicts of nested data, paragraphs, qas, with the fields around them."""
    if isinstance(node, list):
        for child in node:
            yield from innermost(child, around)
    else:
        fields = {**around, **node}
        inner = [fields.pop(name) for name in ('data', 'paragraphs', 'qas') if name in fields]
        yield from innermost(inner, fields) if inner else [fields]


def strings_in(answer):
    """The strings of 'a', ['a', 'b'], {'text': ['a', 'b']} and [{'text': 'a'}, {'text': 'b'}]."""
    if isinstance(answer, dict):
        return strings_in(answer['text'])
    return sum(map(strings_in, answer), []) if isinstance(answer, list) else [answer]


def main(argv):
    parser = argparse.ArgumentParser('python -m data.convert')
    parser.add_argument('file', type=Path, help='.json, .jsonl or .csv')
    parser.add_argument('--out', required=True, type=Path, help='such as NAME.zh.jsonl')
    args, lines = parser.parse_args(argv), []
    try:
        for record in read(args.file):
            if None in record:
                raise csv.Error('a cell without a name: does one have a comma, and no quotes?')
            fields = {NAMES.get(name, name): value for name, value in record.items()}
            found = {name: fields[name] for name in ('question', 'context')}
            found['answer'] = strings_in(fields['answer'])
            lines.append(json.dumps(found, ensure_ascii=False) + '\n')
    except (ValueError, TypeError, KeyError, csv.Error) as e:
        raise ValueError(f'{args.file}: question {len(lines) + 1} cannot be read: {e!r}') from e
    with atomic_write(args.out) as path:
        path.write_text(''.join(lines), encoding='utf-8')
    print(f'{args.out}: {len(lines):,} examples')


if __name__ == '__main__':
    cli.run(main)
