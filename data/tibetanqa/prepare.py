"""TibetanQA (github.com/CMLI-NLP/TibetanQA) and other .csv files whose first row names the fields.

    python -m data.tibetanqa.prepare TibetanQA.csv --out tibetanqa.bo.jsonl
"""
import csv

from config import cli
from data.examples import convert
from data.files import read_lines


def read(path):
    """Yields (row, {field: string}); the header is row 1."""
    rows, n = csv.DictReader((line + '\n' for line in read_lines(path)), strict=True), 1
    try:
        for n, row in enumerate(rows, 2):
            if None in row:
                raise ValueError(f'{path}: row {n} has more cells than the header; a text with a '
                                 'comma stands in "..."')
            yield f'row {n}', row
    except csv.Error as e:
        raise ValueError(f'{path}: row {n + 1} is not .csv ({e}); a text with a comma, a quote or '
                         'an end of line stands in "...", and each of its quotes is doubled') from e


if __name__ == '__main__':
    cli.run(lambda argv: convert(read, __doc__, argv))
