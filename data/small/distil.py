"""Distils a small encoder from a larger one with the same vocabulary, such as e5-small, trimmed.

    python -m data.small.distil --encoder=TEACHER --data_from=MONO,PAIRS --out_dir=out/student

README.md has the commands that make TEACHER. The student begins with some of its layers and FFN
channels, and learns three things: masked tokens; the teacher's states of the text without masks
(DistilBERT, arXiv 1910.01108), in languages that the teacher knows; and for pairs the teacher's
mean state of the translation (Reimers and Gurevych, arXiv 2004.09813). The loop is train.py's.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import train
from config import Train, changeable, cli, fraction, key, runtime
from data.batches import Batches
from data.dataset import open_streams, prepare, report
from data.tasks import MaskedTokens, Translate, tasks
from data.tokenizer import BOS, EOS, PAD
from model import XLMR, to_device

TEMPERATURE = 0.05                      # of the contrast with the other pairs of a batch


@dataclass
class Distil(Train):
    objective: str = key('mlm', 'mlm only')
    dataset: str = key('text', 'a corpus, as for train.py')
    encoder: str = key('out/teacher', 'the teacher')
    out_dir: str = changeable('out/student', 'gets last/, best/ and log.jsonl')
    layers: tuple = key(('0', '1', '3', '6', '10', '11'), 'of the teacher; the first is 0')
    n_ffn: int = key(768, 'channels of each FFN', low=1)
    taught: tuple = key(('ug', 'kk', 'mn', 'zh'), 'languages that the teacher knows')
    mt_fraction: float = fraction(0.5, 'fraction of pairs')
    mlm_ratio: float = fraction(0.25, 'fraction of tokens to predict')
    val_fraction: float = fraction(0.02, 'fraction of documents held out')
    batch_tokens: int = key(65536, 'source + target tokens of a step, on average', low=1)
    max_steps: int = changeable(3500, 'optimizer steps', low=1)
    lr: float = key(1e-3, 'peak learning rate of AdamW', low=1e-9)
    dropout: float = fraction(0.0, 'in the student')


class TaughtTokens(MaskedTokens):
    """Masked tokens in a language that the teacher knows: targets begin with </s>."""
    def example(self, i, rng):
        src, tgt = super().example(i, rng)
        tgt[0] = EOS
        return src, tgt


class Pair(Translate):
    """A text and its translation: targets begin with <s>."""
    def example(self, i, rng):
        return tuple([BOS, *self.stream[row], EOS] for row in self.rows(i))


def mean_states(x, ids):
    """The mean (B,C) of the states x (B,S,C) of ids (B,S)."""
    real = (ids != PAD)[..., None]
    return (x * real).sum(1) / real.sum(1)


class Student(XLMR):
    def forward(self, src, tgt):
        """src (B,S), tgt (B,T) of the three tasks -> the sum of the losses, and how many tokens
        they are for: the masked ones, and all of the source of a pair."""
        src, tgt = to_device(self, src, tgt)
        first, width = tgt[:, 0], max(src.shape[1], tgt.shape[1])
        src, tgt = (F.pad(x, (0, width - x.shape[1]), value=PAD) for x in (src, tgt))
        text, pair = first == EOS, first == BOS
        masked = (tgt != PAD) & ~pair[:, None]
        masked[:, 0] = False
        x, n, n_pairs = self.encode(src), masked.sum(), 0
        loss = self.head.loss(x[masked], tgt[masked])
        if text.any():
            with torch.no_grad():
                states = self.teacher.encode(torch.where(masked, tgt, src)[text])
            real = src[text] != PAD
            loss = loss + n * distance(x[text][real], states[real])
        if pair.sum() > 1:
            with torch.no_grad():
                means = mean_states(self.teacher.encode(tgt[pair]), tgt[pair])
            found, n_pairs = mean_states(x[pair], src[pair]), (src[pair] != PAD).sum()
            loss = loss + n_pairs * (distance(found, means) + 0.2 * contrast(found, means))
        return loss, max(1, int(n + n_pairs))             # not 0: a lone pair has no loss


def distance(x, y):
    """The squared distance of x (N,C) from y (N,C), as a fraction of y's variance."""
    return F.mse_loss(x, y) / y.var(0).mean().clamp_min(1e-6)


def contrast(x, y):
    """InfoNCE (arXiv 1807.03748): x (N,C) is nearer to its own y (N,C) than to the others."""
    a, b = (F.normalize(v - y.mean(0), dim=1) for v in (x, y))
    logits, own = a @ b.T / TEMPERATURE, torch.arange(len(x), device=x.device)
    equal = torch.cdist(y, y, compute_mode='donot_use_mm_for_euclid_dist') < 1e-3   # is no contrast
    return F.cross_entropy(logits.masked_fill(equal.fill_diagonal_(False), -torch.inf), own)


def shrink(teacher, cfg):
    """The student before training: of each FFN, the channels with the largest weights.
    Raises ValueError for layers or channels that the teacher does not have."""
    c, known = teacher.config, {*map(str, range(teacher.config.n_layer))}
    if not cfg.layers or not {*cfg.layers} <= known or cfg.n_ffn > c.n_ffn:
        raise ValueError(f'layers={",".join(cfg.layers)}, n_ffn={cfg.n_ffn}: the teacher has '
                         f'layers 0 to {c.n_layer - 1} and n_ffn {c.n_ffn}')
    config = replace(c, n_layer=len(cfg.layers), n_ffn=cfg.n_ffn, mlm_head=True,
                     dropout=cfg.dropout)
    student = Student(config, teacher.sentencepiece)
    student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for layer, j in zip(student.layers, map(int, cfg.layers)):
        state = teacher.layers[j].state_dict()
        up, down = state['ffn.up.weight'], state['ffn.down.weight']
        keep = (up.norm(dim=1) * down.norm(dim=0)).topk(cfg.n_ffn).indices
        for name in 'ffn.up.weight', 'ffn.up.bias':
            state[name] = state[name][keep]
        layer.load_state_dict({**state, 'ffn.down.weight': down[:, keep]})
    return student


def learned_tasks(folder, tokenizer, cfg):
    """A task for each stream of a prepared folder. A pair's target is a language that the teacher
    knows, zh before others; pairs without one are left out."""
    tasks(folder, 'train', tokenizer, cfg)              # raises for one without text of its own
    found = []
    for name, stream in open_streams(folder, 'train').items():
        source, *target = sorted(name.split('-'), key=lambda x: (x in cfg.taught, x == 'zh'))
        kind = Pair if target else TaughtTokens if source in cfg.taught else MaskedTokens
        if {source, *target} <= {*cfg.languages} and {*target} <= {*cfg.taught}:
            found.append(kind(stream, source, *target or [source], tokenizer, cfg))
    return found


def distil(cfg):
    if cfg.objective != 'mlm':
        raise ValueError(f'objective={cfg.objective!r}: distil.py has only mlm')
    state = train.read_state(cfg)
    teacher, tokenizer = train.build(cfg, None)
    student = shrink(teacher, cfg) if not state else Student.from_encoder(
        Path(cfg.out_dir, 'last'), dropout=cfg.dropout, mlm_head=True)
    device, _ = runtime.find_device(cfg.device, cfg.dtype)
    student.__dict__['teacher'] = teacher.requires_grad_(False).to(device)      # not saved with it
    with runtime.main_process_first() as is_main:
        folder = prepare(cfg.dataset, tokenizer, cfg.block_size, cfg.val_fraction, cfg.data_from)
        if is_main:
            report(folder)
    train.check_start(cfg, state, folder.name)
    learned, held_out = learned_tasks(folder, tokenizer, cfg), tasks(folder, 'val', tokenizer, cfg)
    train.fit(cfg, student, Batches(learned, cfg), lambda model, is_last: train.evaluate(
        model, held_out, tokenizer, cfg, is_last), state, folder.name)


if __name__ == '__main__':
    cli.run(lambda argv: runtime.with_processes(distil, cli.load(Distil, argv)))
