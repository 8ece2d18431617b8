"""Token files: a corpus, split into train and val, tokenised, cut into segments, memory-mapped.

A prepared folder holds two files for each stream (a language, `bo`, or a pair, `bo-zh`) and split:
STREAM.SPLIT.bin, the ids one after the other, and STREAM.SPLIT.npy, the offsets of its segments.
Segments of a pair alternate: 2i and 2i + 1 translate each other; STREAM.val.txt has their texts, a
line each. meta.json has the width of the ids and the counts that `report` prints.
"""
import argparse
import hashlib
import importlib
import json
import os
import sys
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, pairwise
from pathlib import Path

import numpy as np

from config import Train, cli
from data.heldout import digest, splits
from data.files import atomic_dir, read_json_object
from data.tokenizer import UNK, Tokenizer, normalize

ROOT = Path(__file__).parent
SPECIALS = 3                      # <s> <lang> </s>, which stand around a segment in the model
NO_IDS = np.array([], np.int64)
# Notes on documents, which `report` counts
EMPTY = 'pairs with nothing on one side are left out'
HELD_OUT = 'with a text that stands in the validation part are left out'
SHORTENED = 'are shortened by lines and sentences that stand there'


def prepare(dataset, tokenizer, block_size, val_fraction, source=None, needed=False):
    """Tokenises data/DATASET, unless that has been done; returns the folder of token files.

    A segment has at most block_size - SPECIALS tokens. About val_fraction of the documents are held
    out, by `splits`, which raises ValueError where none is but `needed`. `source`: where the corpus
    lies (None: it fetches itself). The folder's name is a hash of all this and of the text files,
    so a changed corpus or vocabulary is prepared anew.
    """
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    settings = tokenizer.model, tokenizer.vocab_size, block_size, val_fraction
    folder = token_folder(dataset) / f'{digest(*settings, *map(identity, files)):016x}'
    if (folder / 'meta.json').exists():
        report(read_json_object(folder / 'meta.json'))
        return folder
    names = [file.name for file in files]
    print(f'preparing {dataset} from {", ".join(names[:9])}{" ..." if len(names) > 9 else ""}')
    with atomic_dir(folder) as new:
        split_of = splits(corpus.documents(files), val_fraction, needed)
        write_streams(new, corpus.documents(files), split_of, tokenizer, block_size)
    return folder


def token_folder(dataset):
    return ROOT / dataset / 'tokens'


def corpus_module(dataset):
    """data/DATASET/prepare.py: fetch(source) -> files; documents(files) -> (key, {language: text}).

    Raises ValueError, which lists the corpora, where there is none of that name.
    """
    known = sorted(path.parent.name for path in ROOT.glob('*/prepare.py')
                   if b'def fetch(' in path.read_bytes())
    if dataset not in known:
        raise ValueError(f'dataset={dataset!r}: there is no data/{dataset}/prepare.py; there are '
                         f'{", ".join(known)} (the others convert examples)')
    return importlib.import_module(f'data.{dataset}.prepare')


def identity(path):
    """A hash of a file's name and bytes, as a hexadecimal string."""
    hashed = hashlib.blake2b(os.fsencode(path.name) + b'\0', digest_size=8)
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()


@dataclass
class Document:
    """A document or pair on its way to the token files; each stage below fills in a field more."""
    split: str                    # 'train', 'val', or None: not used
    texts: dict                   # {language: text}, two of a pair
    lines: dict = None            # {language: [ids (n,) of each line]}
    segments: list = ()           # ids (n,) each
    notes: list = ()              # what `report` counts and prints


def write_streams(folder, documents, split_of, tokenizer, block_size):
    """Writes token files of documents (key, {language: text}), prints a line per stream."""
    documents = split_documents(documents, split_of)
    documents = encode_documents(documents, tokenizer)
    documents = cut_documents(documents, tokenizer, block_size - SPECIALS)
    report(write_documents(folder, documents, tokenizer.vocab_size))


def split_documents(documents, split_of):
    """(key, {language: text}) -> Documents, less the sentences that are held out."""
    for key, texts in documents:
        split, left = split_of(key, texts)
        yield Document(split, left, notes=[] if left == texts else [SHORTENED])


def encode_documents(documents, tokenizer, n=256):
    """Adds `lines`, encoded n documents at a time, for SentencePiece's threads."""
    documents = iter(documents)
    while batch := list(islice(documents, n)):
        texts = [text for document in batch for text in document.texts.values()]
        ids = iter(tokenizer.encode([line for text in texts for line in text.splitlines()]))
        for document in batch:
            document.lines = {language: [next(ids) for _ in text.splitlines()]
                              for language, text in document.texts.items()}
            yield document


def cut_documents(documents, tokenizer, limit):
    """Adds `segments` of at most `limit` tokens: a pair's two sides, or a text's parts."""
    too_long = f'pairs of over {limit} tokens a side are left out'
    for document in documents:
        sides = [np.concatenate([NO_IDS, *lines]) for _, lines in sorted(document.lines.items())]
        lengths = [len(ids) for ids in sides]
        if len(sides) == 2 and not all(lengths):
            document.notes = [EMPTY]
        elif document.split is None:
            document.notes = [HELD_OUT]
        elif len(sides) == 1:
            document.segments = split_segments(*document.lines.values(), tokenizer, limit)
        elif max(lengths) <= limit:
            document.segments = sides
        else:                                     # half a pair has no translation
            document.notes = [too_long]
        yield document


def split_segments(lines, tokenizer, limit, gather=None):
    """Lines of ids -> segments of at most `limit` tokens that end with a sentence or a line.

    All tokens are kept, in order. Whole sentences are gathered up to `gather` tokens (default:
    `limit`; 0: one sentence a segment); a sentence longer than `limit` is cut.
    """
    ids, gather = np.concatenate([NO_IDS, *lines]), limit if gather is None else gather
    if 0 < len(ids) <= gather:                    # most documents; only faster
        return [ids]
    bounds = sorted({0, *tokenizer.sentence_starts(ids).tolist(), *accumulate(map(len, lines))})
    ends = []                                     # where a segment may end
    for first, last in pairwise(bounds):
        ends += [*range(first + limit, last, limit), last]
    segments, start = [], 0
    while start < len(ids):
        furthest = bisect_right(ends, start + gather) - 1
        end = ends[max(furthest, bisect_right(ends, start))]
        segments.append(ids[start:end])
        start = end
    return segments


def write_documents(folder, documents, vocab_size):
    """Writes the Documents' segments, references and meta.json, and returns what that says.

    Raises ValueError where there is no document.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    files, lengths, references = {}, {}, defaultdict(list)
    counts, notes = defaultdict(Counter), defaultdict(Counter)            # by stream
    with ExitStack() as stack:
        for document in documents:
            languages = sorted(document.texts)
            stream = '-'.join(languages)
            lines = [ids for lines in document.lines.values() for ids in lines]
            counts[stream].update(
                documents=1, characters=sum(map(len, document.texts.values())),
                tokens=sum(map(len, lines)),
                unknown=sum(int(np.count_nonzero(ids == UNK)) for ids in lines))
            notes[stream].update(document.notes)
            if not document.segments:             # left out, or without a token, as U+200B is
                continue
            name = f'{stream}.{document.split}'
            if name not in files:
                files[name] = stack.enter_context(open(folder / f'{name}.bin', 'wb'))
                lengths[name] = array('Q')
            for ids in document.segments:
                files[name].write(ids.astype(dtype))
                lengths[name].append(len(ids))
            if len(languages) == 2 and document.split == 'val':
                references[name] += [normalize(document.texts[x]) for x in languages]
    if not counts:
        raise ValueError('the corpus has no text')
    for name in files:
        np.save(folder / f'{name}.npy', np.cumsum([0, *lengths[name]], dtype=np.uint64))
    for name, texts in references.items():
        (folder / f'{name}.txt').write_text('\n'.join(texts), encoding='utf-8')
    meta = {'vocab_size': vocab_size, 'dtype': dtype.name, 'streams': counts, 'notes': notes,
            'segments': {name: len(lengths[name]) for name in files}}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')
    return meta


def report(meta):
    """Prints a line per stream, in segments or pairs; warns where the vocabulary does not fit."""
    print(f'{"stream":8}{"documents":>10}{"tokens":>13}{"for training":>14}{"held out":>10}'
          f'{"tokens/char":>13}{"<unk>":>9}')
    for stream, counts in meta['streams'].items():
        n_sides = len(stream.split('-'))
        train, val = (meta['segments'].get(f'{stream}.{split}', 0) // n_sides
                      for split in ('train', 'val'))
        per_character = counts['tokens'] / max(counts['characters'], 1)
        unknown = counts['unknown'] / max(counts['tokens'], 1)
        print(f'{stream:8}{counts["documents"]:10,}{counts["tokens"]:13,}{train:14,}{val:10,}'
              f'{per_character:13.2f}{unknown:9.2%}')
        for note, n in meta.get('notes', {}).get(stream, {}).items():
            print(f'  {n} {note}')
        if unknown > 0.01:
            print(f'warning: {unknown:.1%} of the tokens of {stream} are <unk>: the vocabulary '
                  'lacks its characters. Use an encoder that has them (for Tibetan: CINO), or add '
                  'them with `python -m data.vocabulary extend`', file=sys.stderr)


class Stream:
    """One memory-mapped token file: `stream[i]` is segment i (n,), `lengths` (N,) their tokens.

    Raises ValueError for a file that is damaged or has ids outside the vocabulary.
    """

    def __init__(self, folder, name, meta):
        self.path, self.dtype = folder / f'{name}.bin', np.dtype(meta['dtype'])
        try:
            self.offsets = np.load(folder / f'{name}.npy')
        except (ValueError, EOFError) as e:
            raise damaged(folder, f'{name}.npy is not an array') from e
        self.lengths = np.diff(self.offsets).astype(np.int64)
        n_tokens = self.path.stat().st_size / self.dtype.itemsize
        if len(self) != meta['segments'][name] or n_tokens != self.offsets[-1]:
            raise damaged(folder, f'{self.path.name} has {n_tokens:g} tokens, and {name}.npy is '
                                  'not their offsets')
        if (largest := self.ids.max()) >= meta['vocab_size']:
            raise damaged(folder, f'{self.path.name} has id {largest}, and the vocabulary ends at '
                                  f'{meta["vocab_size"] - 1}')

    @cached_property
    def ids(self):
        return np.asarray(np.memmap(self.path, self.dtype, 'r'))      # slices of a memmap are slow

    def __getstate__(self):                       # a worker process maps the file anew
        return {key: value for key, value in vars(self).items() if key != 'ids'}

    @cached_property
    def texts(self):
        """The text of each segment of a pair that is held out, normalized."""
        return self.path.with_suffix('.txt').read_text(encoding='utf-8').split('\n')

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        start = int(self.offsets[i])
        return self.ids[start:start + int(self.lengths[i])].astype(np.int64)


def open_streams(folder, split):
    """{name: Stream} of a prepared folder; names are languages, or pairs like bo-zh."""
    meta = read_json_object(folder / 'meta.json')
    return {name.removesuffix(f'.{split}'): Stream(folder, name, meta)
            for name in sorted(meta['segments']) if name.endswith(f'.{split}')}


def damaged(folder, why):
    return ValueError(
        f'{folder} is damaged ({why}); delete it, and the next run prepares the text again')


def main(dataset):
    """The command line of data/NAME/prepare.py: prepares a corpus, prints how a vocabulary fits."""
    parser = argparse.ArgumentParser(
        f'python -m data.{dataset}.prepare', description=corpus_module(dataset).__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--from', dest='source', help='where the corpus lies')
    parser.add_argument('--encoder', required=True, type=cli.find,
                        help='a folder with a SentencePiece file, or the file')
    parser.add_argument('--block_size', type=int, default=256,
                        help='longest sequence in tokens (256)')
    parser.add_argument('--val_fraction', type=float, default=0.1, help='documents held out (0.1)')

    def run(argv):
        args = parser.parse_args(argv)
        for key in ('block_size', 'val_fraction'):
            cli.from_dict(Train, {key: getattr(args, key)}, '--')
        folder = prepare(dataset, Tokenizer(args.encoder), args.block_size, args.val_fraction,
                         args.source)
        print(f'the token files are in {folder}')

    cli.run(run)
