"""LCSTS (Hu et al. 2015, aclanthology.org/D15-1229): short texts and their summaries, as published.

    python -m data.lcsts.prepare PART_I.txt --out lcsts.zh.jsonl
"""
import re

from config import cli
from data.examples import convert
from data.files import read_lines

FIELD = re.compile(r'<(summary|short_text)>(.*?)</\1>', re.DOTALL)


def read(path):
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


if __name__ == '__main__':
    cli.run(lambda argv: convert(read, __doc__, argv))
