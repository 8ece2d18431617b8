"""CMRC 2018 (Cui et al., aclanthology.org/D19-1600), and others in SQuAD's form such as KazQAD.

    python -m data.cmrc.prepare cmrc2018_train.json --out cmrc.zh.jsonl
"""
import json

from config import cli
from data.examples import convert
from data.files import read_lines, shorten


def questions(node, around=None):
    """Yields the innermost objects of nested data, paragraphs, qas, with the fields around them."""
    if isinstance(node, list):
        for child in node:
            yield from questions(child, around)
    elif isinstance(node, dict):
        fields = {**(around or {}), **node}
        inner = [fields.pop(name) for name in ('data', 'paragraphs', 'qas') if fields.get(name)]
        yield from questions(inner[0], fields) if inner else [fields]
    else:
        raise ValueError(f'{shorten(ascii(node))} stands where an object should')


def read(path):
    """Yields (which question, {field: value}) of a .json file, or of a .jsonl line by line."""
    lines = list(read_lines(path))
    texts = lines if path.suffix == '.jsonl' else ['\n'.join(lines)]
    try:
        found = list(questions([json.loads(text) for text in texts if text.strip()]))
    except ValueError as e:
        raise ValueError(f"{path} is not JSON in SQuAD's form: {e}") from e
    for n, question in enumerate(found, 1):
        yield f'question {n}', question


if __name__ == '__main__':
    cli.run(lambda argv: convert(read, __doc__, argv))
