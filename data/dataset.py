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
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path

import numpy as np

from config import cli
from data.files import atomic_dir, read_json_object
from data.heldout import digest, splits
from data.tokenizer import UNK, Tokenizer, normalize

ROOT = Path(__file__).parent
FORMAT = 2                        # of the token files
SPECIALS = 3                      # <s> <lang> </s>, which stand around a segment in the model
NO_IDS = np.array([], np.int64)


def prepare(dataset, tokenizer, block_size, val_fraction, source=None):
    """Tokenises data/DATASET, unless that has been done; returns the folder of token files.

    A segment has at most block_size - SPECIALS tokens. About val_fraction of the documents are held
    out. `source`: where the corpus lies ('': it fetches itself). The folder's name is a hash of
    all this and of the text files, so a changed corpus or vocabulary is prepared anew.
    """
    corpus = corpus_module(dataset)
    files = corpus.fetch(source)
    if not files:
        raise ValueError(f'{dataset}: {source or "the corpus"} has no text')
    settings = FORMAT, tokenizer.model, tokenizer.vocab_size, block_size, val_fraction
    folder = token_folder(dataset) / f'{digest(*settings, *map(identity, files)):016x}'
    if not (folder / 'meta.json').exists():
        print(f'preparing {dataset} from {len(files)} files, such as {files[0].name}')
        with atomic_dir(folder) as new:
            split_of = splits(corpus.documents(files), val_fraction)
            write_streams(new, corpus.documents(files), split_of, tokenizer, block_size)
    return folder


def token_folder(dataset):
    return ROOT / dataset / 'tokens'


def corpus_module(dataset):
    """data/DATASET/prepare.py: fetch(source) -> files; documents(files) -> (key, {language: text}).

    Raises ValueError, which lists the corpora, where there is none of that name.
    """
    known = sorted(path.parent.name for path in ROOT.glob('*/prepare.py'))
    if dataset not in known:
        raise ValueError(f'dataset={dataset!r}: there is no data/{dataset}/prepare.py; there are '
                         f'{", ".join(known)}')
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
    """A document, or a pair, on its way to the token files."""
    split: str                    # 'train', 'val', or None: left out
    texts: dict                   # {language: text} in the order of the names, two of a pair
    is_shortened: bool            # held-out sentences are left out
    lines: list = ()              # for each text, the ids (n,) of each of its lines


def split_documents(documents, split_of):
    """(key, {language: text}) -> Documents, less the sentences that are held out."""
    for key, texts in documents:
        split, left = split_of(key, texts)
        yield Document(split, dict(sorted(left.items())), is_shortened=left != texts)


def encode_documents(documents, tokenizer, n=256):
    """Adds `lines`, encoded n documents at a time, for SentencePiece's threads."""
    documents = iter(documents)
    while batch := list(islice(documents, n)):
        texts = [text.splitlines() for document in batch for text in document.texts.values()]
        ids = iter(tokenizer.encode(list(chain(*texts))))
        for document in batch:
            document.lines = [[next(ids) for _ in text.splitlines()]
                              for text in document.texts.values()]
            yield document


def cut_document(document, tokenizer, limit):
    """A text's segments, or the two of a pair, of at most `limit` tokens; and what is left out."""
    sides = [np.concatenate([NO_IDS, *lines]) for lines in document.lines]
    is_pair = len(sides) == 2
    if is_pair and not all(map(len, sides)):
        return [], 'pairs with nothing on one side are left out'
    if document.split is None:
        return [], 'with a held-out text are left out'
    if is_pair and max(map(len, sides)) > limit:  # half a pair has no translation
        return [], f'pairs of over {limit} tokens a side are left out'
    segments = sides if is_pair else split_segments(document.lines[0], tokenizer, limit)
    return segments, 'are shortened by held-out sentences' if document.is_shortened else None


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


def write_streams(folder, documents, split_of, tokenizer, block_size):
    """Writes the token files of documents (key, {language: text}), and meta.json.

    Raises ValueError where there is no document.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    counts, notes = defaultdict(Counter), defaultdict(Counter)            # by stream
    files, lengths, references = {}, defaultdict(partial(array, 'Q')), defaultdict(list)
    for document in encode_documents(split_documents(documents, split_of), tokenizer):
        stream, texts = '-'.join(document.texts), document.texts.values()
        ids = np.concatenate([NO_IDS, *chain(*document.lines)])
        counts[stream].update(documents=1, characters=sum(map(len, texts)), tokens=len(ids),
                              unknown=int(np.count_nonzero(ids == UNK)))
        segments, note = cut_document(document, tokenizer, block_size - SPECIALS)
        notes[stream].update([note] if note else [])
        if segments:                              # else left out, or no token, as of U+200B
            name = f'{stream}.{document.split}'
            lengths[name].extend(map(len, segments))
            if name not in files:
                files[name] = open(folder / f'{name}.bin', 'wb')
            files[name].write(np.concatenate(segments).astype(dtype))
            if document.split == 'val' and len(texts) == 2:
                references[name] += map(normalize, texts)
    if not counts:
        raise ValueError('the corpus has no text')
    for name in files:
        files[name].close()
        np.save(folder / f'{name}.npy', np.cumsum([0, *lengths[name]], dtype=np.uint64))
    for name, texts in references.items():
        (folder / f'{name}.txt').write_text('\n'.join(texts), encoding='utf-8')
    meta = {'vocab_size': tokenizer.vocab_size, 'dtype': dtype.name, 'streams': counts,
            'notes': notes, 'segments': {name: len(lengths[name]) for name in lengths}}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')


def read_meta(folder):
    return read_json_object((folder / 'meta.json').read_bytes(), folder / 'meta.json')


def report(folder):
    """Prints a line per stream, in segments or pairs; warns where the vocabulary does not fit."""
    meta = read_meta(folder)
    print('stream   documents       tokens  for training  held out  tokens/char    <unk>')
    for stream, n in meta['streams'].items():
        train, val = (meta['segments'].get(f'{stream}.{split}', 0) // len(stream.split('-'))
                      for split in ('train', 'val'))
        per_character = n['tokens'] / max(n['characters'], 1)
        unknown = n['unknown'] / max(n['tokens'], 1)
        print(f'{stream:8}{n["documents"]:10,}{n["tokens"]:13,}{train:14,}{val:10,}'
              f'{per_character:13.2f}{unknown:9.2%}')
        for note, times in meta['notes'][stream].items():
            print(f'  {times} {note}')
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
            self.offsets = np.load(folder / f'{name}.npy').astype(np.int64)
            is_whole = len(self.ids) == self.offsets[-1] and self.ids.max() < meta['vocab_size']
        except (ValueError, EOFError):
            is_whole = False
        if not is_whole:
            raise ValueError(f'{folder} is damaged ({name}.bin or .npy); delete it, and the next '
                             'run prepares the text again')
        self.lengths = np.diff(self.offsets)

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
        return self.ids[self.offsets[i]:self.offsets[i + 1]].astype(np.int64)


def open_streams(folder, split):
    """{name: Stream} of a prepared folder; names are languages, or pairs like bo-zh."""
    meta = read_meta(folder)
    return {name.removesuffix(f'.{split}'): Stream(folder, name, meta)
            for name in sorted(meta['segments']) if name.endswith(f'.{split}')}


def main(dataset):
    """The command line of data/NAME/prepare.py: prepares a corpus, prints how a vocabulary fits."""
    parser = argparse.ArgumentParser(f'python -m data.{dataset}.prepare')
    parser.add_argument('--from', help='where the corpus lies')
    parser.add_argument('--encoder', required=True, help='a folder with a SentencePiece file')

    def run(argv):
        args = vars(parser.parse_args(argv))
        folder = prepare(dataset, Tokenizer(cli.find(args['encoder'])), 256, 0.1, args['from'])
        report(folder)
        print(f'the token files are in {folder}')

    cli.run(run)
