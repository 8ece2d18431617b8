"""What the tests of a fine-tuning run score without a model.

    python tests/tools/baselines.py config/finetune/translate.py --data=web.bo-zh.tsv \
        --out_dir=out/baselines                         # else the run's arguments

translate: `look-up`, the translation of the most similar training source. summarise: `sentence`,
the article's first; `lead`, as many of its first units as the titles learned (or else tested) have
on average, marks not counted. answer: `sentence`, that of the context with most of the question's
units. Their scores and outputs are written to folders such as out/baselines/look-up.
"""
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
from lookup import Lookup

from config import FineTune, cli
from data.batches import evenly_spaced
from data.cloze import sentences, spaced_units
from data.examples import languages_of
from data.metrics import score, words_only
from finetune import read_parts, write_scores


def most_shared(question, context, language):
    """The sentence of the context with most of the question's units; of several the shortest."""
    asked = {*words_only(question, language)}

    def shared(sentence):
        found = {*words_only(sentence, language)}
        return len(found & asked), -len(found)

    return max(sentences(context), key=shared)


def outputs_of(task, learned, chosen, language):
    """{name of a baseline: an output for each of the chosen examples}. language: of sources."""
    if task == 'answer':
        return {'sentence': [most_shared(*e.source, language) for e in chosen]}
    texts = [e.source[0] for e in chosen]
    if task == 'summarise':
        n = round(statistics.mean(len(words_only(e.target, languages_of(e.direction)[1]))
                                  for e in learned or chosen))
        return {'sentence': [sentences(text)[0] for text in texts],
                'lead': [''.join(spaced_units(text, language)[:n]).strip() for text in texts]}
    table = Lookup([(e.source[0], e.target) for e in learned])
    return {'look-up': [table.translate(text) for text in texts]} if learned else {}


def main(argv):
    cfg, runs = cli.load(FineTune, argv), {}
    parts, _ = read_parts(cfg)
    for part in [part for part in parts if part not in ('train', 'val')]:
        for direction in cfg.directions:
            tests, learned = ([e for e in parts[name] if e.direction == direction]
                              for name in (part, 'train'))
            if not tests:
                continue
            chosen = [tests[i] for i in evenly_spaced(len(tests), cfg.test_examples or len(tests))]
            references = [(e.target, *e.others) for e in chosen]
            source, language = languages_of(direction)
            for name, outputs in outputs_of(cfg.task, learned, chosen, source).items():
                runs.setdefault(name, []).append(
                    (part, direction, {}, chosen, outputs, *score(outputs, references, language)))
    if not runs:
        raise ValueError(f'data={cfg.data}: nothing is held out to score, or no pairs are learned')
    for name, tests in runs.items():
        print(f'{name}:')
        write_scores(tests, cfg, Path(cfg.out_dir, name))


if __name__ == '__main__':
    cli.run(main)
