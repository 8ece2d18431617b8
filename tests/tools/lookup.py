"""What translation scores without a model: chrF++ on the pairs with which a training run ends.

    python tests/tools/lookup.py config/laptop.py --data_from=MONO,PAIRS      # the run's arguments

`look-up`: the translation of the most similar training source (Dice's coefficient of character
bigrams). `another`: the reference of the next pair, which is right in script and subject alone.
"""
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from config import Train, cli
from data.batches import evenly_spaced
from data.dataset import prepare
from data.metrics import chrf
from data.tasks import tasks
from data.tokenizer import Tokenizer
from train import start_folder


class Lookup:
    """Pairs of strings by the bigrams of their sources."""
    def __init__(self, pairs):
        self.pairs, self.sizes, self.having = pairs, [], defaultdict(list)
        for i, (source, _) in enumerate(pairs):
            grams = Counter(pairwise(source))
            self.sizes.append(grams.total())
            for gram, n in grams.items():
                self.having[gram].append((i, n))

    def translate(self, source):
        shared, grams = Counter(), Counter(pairwise(source))
        for gram, n in grams.items():
            for i, m in self.having[gram]:
                shared[i] += min(n, m)
        best = max(shared, default=0, key=lambda i: 2 * shared[i] / (self.sizes[i] + grams.total()))
        return self.pairs[best][1]


def main(argv):
    cfg = cli.load(Train, argv)
    tokenizer = Tokenizer(start_folder(cfg), cfg.languages)
    text = prepare(cfg.dataset, tokenizer, cfg.block_size, cfg.val_fraction, cfg.data_from)
    learned, held_out = ({task.name: task for task in tasks(text, split, tokenizer, cfg)
                          if task.kind == 'mt'} for split in ('train', 'val'))
    names = [name for name in held_out if name in learned]
    if not names or not cfg.eval_translations:
        raise ValueError(f'eval_translations={cfg.eval_translations}: give a run that ends with '
                         'chrF++ of held-out pairs')
    for name in names:
        train, val = learned[name], held_out[name]
        table = Lookup([[tokenizer.decode(ids) for ids in train.val_example(i)]
                        for i in range(len(train))])
        chosen = evenly_spaced(len(val), cfg.eval_translations)
        sources = [tokenizer.decode(val.val_example(i)[0]) for i in chosen]
        references = [val.reference(i) for i in chosen]
        found = chrf([table.translate(source) for source in sources], references)
        another = chrf(references[1:] + references[:1], references)
        print(f'chrF++ {name.split()[1]} of {len(chosen)} pairs: look-up {found:.1f}, '
              f'another {another:.1f}')


if __name__ == '__main__':
    cli.run(main)
