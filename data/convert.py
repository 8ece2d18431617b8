"""Questions and answers in SQuAD's nested JSON, written as the .jsonl that data/examples.py reads.

    python -m data.convert cmrc2018_train.json --out cmrc.zh.jsonl

So come SQuAD, the squad-style-data of CMRC 2018 (aclanthology.org/D19-1600) and KazQAD's .jsonl.
"""
import argparse
import json
from pathlib import Path

from config import cli
from data.files import atomic_write, read_lines


def questions(path):
    """The questions of a file, as dicts with `question`, `context`, `answers` and more."""
    if path.suffix == '.jsonl':
        return [json.loads(line) for line in read_lines(path) if line.strip()]
    articles = json.loads('\n'.join(read_lines(path)))['data']
    return [{**paragraph, **question} for article in articles
            for paragraph in article['paragraphs'] for question in paragraph['qas']]


def main(argv):
    parser = argparse.ArgumentParser('python -m data.convert')
    parser.add_argument('file', type=Path, help='.json, or .jsonl with an object a line')
    parser.add_argument('--out', required=True, type=Path, help='such as NAME.zh.jsonl')
    args, examples = parser.parse_args(argv), []
    try:
        for asked in questions(args.file):
            found = asked['answers']                # [{'text': 'a'}, ...] or {'text': ['a', ...]}
            strings = found['text'] if isinstance(found, dict) else [a['text'] for a in found]
            examples.append({'question': asked['question'], 'context': asked['context'],
                             'answer': strings})
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f'{args.file}: question {len(examples) + 1} cannot be read: {e!r}') from e
    with atomic_write(args.out) as path:
        path.write_text(''.join(json.dumps(e, ensure_ascii=False) + '\n' for e in examples),
                        encoding='utf-8')
    print(f'{args.out}: {len(examples):,} examples')


if __name__ == '__main__':
    cli.run(main)
