"""CMRC 2018 (Cui et al., aclanthology.org/D19-1600), and others in SQuAD's form such as KazQAD.

    python -m data.cmrc.prepare cmrc2018_train.json --out cmrc.zh.jsonl
"""
import json

from config import cli
from data.examples import convert
from data.files import read_lines


def read(path):
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


if __name__ == '__main__':
    cli.run(lambda argv: convert(read, __doc__, argv))
