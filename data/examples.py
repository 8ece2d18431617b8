"""Supervised examples, source to target: translations, summaries, answers.

.tsv      two columns: source and target or, with a name such as web.bo-zh.tsv, a translation
.jsonl    an object a line: a text in several languages, `zh`, `bo` (also `zh-CN`, `bod_Tibt`, and
          inside `translation`); or the fields of one of FORMS, `answer` a list where several are
          right. `lang`, or `source_lang` and `target_lang`, may say the languages

Else the file's name says them (news.bo.jsonl), or the settings, if they have one direction only.
"""
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import is_text, read_json_object, read_lines, read_pairs, shorten
from data.heldout import Texts, digest
from data.languages import check_script, language_code
from data.tokenizer import EOS, normalize

FORMS = (('question', 'context', 'answer'), ('question', 'context', 'answers'),
         ('query_text', 'context_text', 'answers'), ('问题', '段落', '答案'),
         ('source', 'target'), ('article', 'title'), ('short_text', 'summary'))
NAME = re.compile(r'(?:.*\.)?([a-z]{2,3})(?:-([a-z]{2,3}))?\.\w+')


@dataclass(frozen=True)
class Example:
    direction: str                                    # zh-bo; bo stands for bo-bo
    source: tuple                                     # one text, or question and context
    target: str
    key: str                                          # its hash says whether this is held out
    texts: tuple                                      # not learned if one of them is held out
    others: tuple = ()                                # further answers that count as right


def languages_of(direction):
    """('zh', 'bo') of zh-bo, ('bo', 'bo') of bo."""
    source, _, target = direction.partition('-')
    return source, target or source


def direction(source, target):
    """The inverse of languages_of."""
    return source if source == target else f'{source}-{target}'


def read_examples(paths, directions):
    """The Examples in `directions` of files, and a Counter of those left out, by reason.

    paths: file names, separated by commas. Raises OSError, and ValueError for an example of no
    known form or language, texts in another script, and a file without an example.
    """
    found, left_out = [], Counter()
    for path in (Path(part.strip()).expanduser() for part in paths.split(',')):
        kept, counts = [], Counter()
        for example in read_file(path, directions):
            if example.direction not in directions:
                counts[f'{example.direction}, which is not asked for'] += 1
            elif not all(text.strip() for text in example.source):
                counts['empty source'] += 1
            elif not normalize(example.target):       # as of U+200B
                counts['empty target'] += 1
            else:
                kept.append(example)
        if not kept:
            raise ValueError(f'{path}, see the languages in its name, has no example of '
                             f'{" ".join(directions)}; left out: {"; ".join(counts) or "none"}')
        check_scripts(kept, path)
        found += kept
        left_out += counts
    return found, left_out


def check_scripts(examples, path):
    """Raises ValueError for texts in the script of another language, as of swapped columns."""
    for d in {e.direction for e in examples}:
        first = [e for e in examples if e.direction == d][:1000]
        sides = [e.source[-1][:1000] for e in first], [e.target[:1000] for e in first]
        for texts, language in zip(sides, languages_of(d)):
            check_script(texts, language, path)


def read_file(path, directions):
    """Yields the Examples of a .tsv or .jsonl file, also those in other directions."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist or is a folder; give files, separated by '
                                'commas')
    match = NAME.fullmatch(path.name)
    named = tuple(filter(None, match.groups())) if match else ()
    if '.' not in path.stem and not {*named} <= {*'-'.join(directions).split('-')}:
        named = ()                                    # ti-sum.jsonl says no language
    if path.suffix == '.tsv':
        columns = named if len({*named}) == 2 else ('source', 'target')
        records = ((n, dict(zip(columns, texts))) for n, texts in read_pairs(path, named))
    elif path.suffix == '.jsonl':
        records = ((n, read_json_object(line, f'{path}: line {n}'))
                   for n, line in enumerate(read_lines(path), 1) if line.strip())
    else:
        raise ValueError(f'{path}: examples come as .tsv or .jsonl; data/convert.py converts '
                         'others')
    for n, record in records:
        yield from make_examples(record, f'{path}: line {n}', named, directions)


def make_examples(record, where, named, directions):
    """The Examples of a record {field: value}: one, or for a text in several languages one for each
    of `directions` that it has. named: the languages that the file's name says."""
    if isinstance(record.get('translation'), dict):   # as on Hugging Face's hub
        record = {**record, **record['translation']}
    record = {language_code(name): value for name, value in record.items()}
    known = {*named, *'-'.join(directions).split('-')}
    texts = {language: strings_of(record, language, where)[0]
             for language in sorted(known & record.keys())}
    if len(texts) > 1:
        pairs = [pair for pair in map(languages_of, directions) if len({*pair} & {*texts}) == 2]
        return [translation(texts, *pair) for pair in pairs or [tuple(texts)[:2]]]
    own = [record[name] for name in ('source_lang', 'lang', 'target_lang') if record.get(name)]
    if not own and not named and len(directions) > 1:
        raise ValueError(f'{where}: nothing says which of {" ".join(directions)} it is; give it a '
                         '"lang", or name the file like news.bo.jsonl')
    languages = [language_code(str(x)) for x in own or named or languages_of(directions[0])]
    *source, (target, *others) = texts_by_field(record, where).values()
    source, pair = tuple(strings[0] for strings in source), (languages[0], languages[-1])
    if pair[0] != pair[1] and len(source) == 1:
        return [translation(dict(zip(pair, (*source, target))), *pair)]
    return [Example(direction(*pair), source, target, source[-1], source[-1:], tuple(others))]


def translation(texts, source, target):
    """The Example of {language: text}. data/heldout.py chooses by the same key."""
    there = {language: text for language, text in texts.items() if text.strip()}
    key = there[max(there)] if there else ''
    return Example(f'{source}-{target}', (texts[source],), texts[target], key, (*there.values(),))


def texts_by_field(record, where):
    """{field: strings} of the first of FORMS that a record has."""
    for form in FORMS:
        if record.keys() >= {*form}:
            return {field: strings_of(record, field, where) for field in form}
    raise ValueError(f'{where} has neither source, target nor question, context, answer, by a name '
                     f'of FORMS; its fields: {shorten(", ".join(map(repr, record)))}')


def strings_of(record, field, where):
    """The different strings of a field, one or more; answers may be in SQuAD's forms."""
    value = record[field].get('text') if isinstance(record[field], dict) else record[field]
    values = value if isinstance(value, list) else [value]
    strings = [item.get('text') if isinstance(item, dict) else item for item in values]
    if not all(isinstance(string, str) and is_text(string) for string in strings):
        raise ValueError(f'{where}: {field} is {shorten(ascii(record[field]))}, expected a string '
                         'of whole characters')
    return list(dict.fromkeys(strings)) or ['']


def split_examples(examples, val_fraction, test_fraction):
    """Returns {'train': [...], 'val': ..., 'test': ...} and the number of examples left out.

    The hash of its key says where an example belongs. So the parts stay when the data grows, are
    the same for all directions of a text, and hold out the translations that data/text does with
    the sum of the fractions as val_fraction. An example is left out if it shares a text
    (data.heldout.Texts) with one for the test or, for training, with one for validation.
    """
    parts, held_out = {'train': [], 'val': [], 'test': []}, Texts()
    for e in examples:
        place = digest(e.key) / 2**64
        is_test, is_train = place < test_fraction, place >= test_fraction + val_fraction
        parts['test' if is_test else 'train' if is_train else 'val'].append(e)
    for part in 'test', 'val', 'train':
        parts[part] = [e for e in parts[part] if not any(text in held_out for text in e.texts)]
        if part != 'train':
            held_out.update(text for e in parts[part] for text in e.texts)
    return parts, len(examples) - sum(map(len, parts.values()))


def truncate(ids, limit):
    """A source's ids (n,), cut before its </s> to at most `limit`."""
    return ids if len(ids) <= limit else np.append(ids[:limit - 1], EOS)


class Examples:
    """Examples of one direction as token ids: a training task for data/batches.py.

    Sources are cut to max_source_len tokens, question and context together; `n_cut` are. `n_long`
    targets have more than max_target_len tokens: these examples are not learned.
    """
    def __init__(self, direction, examples, tokenizer, cfg, learn=True):
        self.name, self.direction = f'{cfg.task} {direction}', direction
        self.source, self.target = languages_of(direction)
        self.examples, self.ids, self.n_cut, self.n_long = [], [], 0, 0
        for e in examples:
            source = tokenizer.add_special_tokens(self.source, *map(tokenizer.encode, e.source))
            target = tokenizer.add_special_tokens(self.target, tokenizer.encode(e.target))
            is_long, is_cut = len(target) > cfg.max_target_len, len(source) > cfg.max_source_len
            self.n_long += is_long
            if not is_long or not learn:
                self.n_cut += is_cut
                self.examples.append(e)
                self.ids.append((truncate(source, cfg.max_source_len), target))
        self.lengths = np.array([[len(s), len(t)] for s, t in self.ids]).reshape(-1, 2).T

    def __len__(self):
        return len(self.ids)

    def example(self, i, rng=None):
        return self.ids[i]

    val_example = example
