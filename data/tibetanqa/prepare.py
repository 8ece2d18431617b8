"""TibetanQA (github.com/CMLI-NLP/TibetanQA) and other .csv files whose first row names the fields.

    python -m data.tibetanqa.prepare TibetanQA.csv --out tibetanqa.bo.jsonl
"""
import csv

from config import cli
from data.examples import convert
from data.files import read_lines


def read(path):
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


if __name__ == '__main__':
    cli.run(lambda argv: convert(read, __doc__, argv))
