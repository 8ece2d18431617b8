"""Training: pretraining (denoising and translation, or masked LM), and `fit`, the loop.

    python train.py config/tibetan.py --seed=2 --out_dir=out/seed2
    torchrun --nproc_per_node=4 train.py config/tibetan_base.py

The same command resumes a stopped run. In this order: the loop, its checkpoints, evaluation.
"""
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config import Train, cli, runtime
from config.runtime import barrier, main_process_first, print0, rank_and_world
from data import hub
from data.batches import Batches, evenly_spaced, val_batches
from data.dataset import prepare, report
from data.files import atomic_dir, check_folder, read_json_object, sync
from data.metrics import chrf
from data.tasks import tasks
from data.tokenizer import PAD, Tokenizer
from model import SWCM, XLMR, Layer, LossAndGradient, SWCMConfig, to_device
from sample import generate_texts, model_folder

STATE = 'training.safetensors'                          # in last/: all that resume needs
MODEL_SETTINGS = 'layer', 'share', 'insert_every', 'inserted', 'head'   # a checkpoint has its own
COMPILED = Layer, LossAndGradient                       # once per class, for all shapes
MOST_SKIPPED = 5                                        # skipped steps in a row that end a run


def train(cfg):
    """Runs one config to its end: builds a model, prepares the corpus, trains."""
    if cfg.objective not in ('swcm', 'mlm'):
        raise ValueError(f'objective={cfg.objective!r}: choose swcm or mlm')
    state = read_state(cfg)
    if state and state['progress'].step >= cfg.max_steps:
        return print0(f'{cfg.out_dir} has done its {state["progress"].step} steps. --max_steps=N '
                      'continues it, --resume=False starts over')
    model, tokenizer = build(cfg, state)
    with main_process_first() as is_main:
        folder = prepare(cfg.dataset, tokenizer, cfg.block_size, cfg.val_fraction, cfg.data_from)
        if is_main:
            report(folder)
    check_start(cfg, state, folder.name)
    print0(f'{cfg.out_dir}: {cfg.objective} on {cfg.dataset}\n{weight_report(model)}')
    learned, held_out = (tasks(folder, split, tokenizer, cfg) for split in ('train', 'val'))
    if lacking := sorted({task.name for task in learned} - {task.name for task in held_out}):
        print0(f'warning: no held-out text for {", ".join(lacking)}; raise --val_fraction')
    fit(cfg, model, Batches(learned, cfg), lambda model, is_last: evaluate(
        model, held_out, tokenizer, cfg, is_last), state, folder.name)


def build(cfg, state):
    """The model and its tokenizer: from the run that is resumed, a checkpoint, or an encoder.
    Raises ValueError for settings that this model does not have, or more tokens than it reads."""
    torch.manual_seed(cfg.seed)
    with main_process_first():
        folder = f'{cfg.out_dir}/last' if state else start_folder(cfg, hub.fetch)
    if not state:                                       # `read_state` has checked it
        check_folder(folder)
    if getattr(cfg, 'objective', 'swcm') == 'mlm':
        model = XLMR.from_encoder(folder, dropout=cfg.dropout, mlm_head=True)
    elif state or getattr(cfg, 'checkpoint', ''):
        model = SWCM.load(folder, dropout=cfg.dropout)
    else:
        model = SWCM.from_encoder(folder, languages=cfg.languages, **{
            name: getattr(cfg, name) for name in (*MODEL_SETTINGS, 'dropout')})
    c, encoder = model.config, getattr(model, 'encoder', model)
    for name in MODEL_SETTINGS:
        if getattr(cfg, name) not in (getattr(c, name), getattr(SWCMConfig, name)):
            raise ValueError(f'{name}={getattr(cfg, name)}: the model of {folder} has '
                             f'{getattr(c, name)}; give --{name}={getattr(c, name)}')
    for name in 'block_size', 'max_source_len', 'max_target_len':
        if getattr(cfg, name, 0) > c.max_length:
            raise ValueError(f'{name}={getattr(cfg, name)}: this model reads at most '
                             f'{c.max_length} tokens')
    return model, Tokenizer(encoder.sentencepiece, c.languages, c.vocab_size)


def start_folder(cfg, find=hub.locate):
    """The folder whose weights a run begins from; with find=hub.fetch it is fetched first."""
    return model_folder(getattr(cfg, 'checkpoint', '') or find(cfg.encoder))


@dataclass
class Progress:
    """How far a run has come."""
    step: int = 0
    tokens: int = 0                                     # target tokens
    best: list = field(default_factory=lambda: [math.inf])      # sort key of best/: the lowest
    skipped: int = 0                                    # steps in a row that changed no weight


@dataclass
class Stats:
    """Statistics of an optimizer step, over all processes."""
    loss: float                                         # nats per target token
    grad_norm: float
    n_targets: int                                      # tokens

    @property
    def is_finite(self):
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def fit(cfg, model, batches, evaluator, state=None, text_hash=None, by_scores=False):
    """Trains model from its weights, or from `state`, until cfg.max_steps; writes cfg.out_dir.

    `model(src, tgt)` gives the sum of the token losses and the number of target tokens;
    `batches[k]` a pair of int64 arrays; `evaluator(model, is_last)` a dict of losses per token, one
    of scores, and lines to show. The best checkpoint has the lowest mean loss; with by_scores, the
    highest mean score, then the lowest loss. text_hash: see check_start. On a CPU the same settings
    give the same bits, resumed or not."""
    (device, dtype), (rank, world) = runtime.find_device(cfg.device, cfg.dtype), rank_and_world()
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    model.to(device).train()
    getattr(model, 'encoder', model).layers.requires_grad_(not cfg.freeze)
    optimizer = make_optimizer(model, cfg)
    run = Checkpoints(cfg, model, optimizer, state, text_hash)
    progress, forward = run.progress, model
    if cfg.compile and runtime.can_compile(device):
        for part in (m for m in model.modules() if isinstance(m, COMPILED)):
            part.compile(dynamic=True)
    if world > 1:
        torch._dynamo.config.optimize_ddp = False       # it would cut layers into pieces
        forward = DistributedDataParallel(model)
    bar = tqdm(total=cfg.max_steps, initial=progress.step, unit='step', dynamic_ncols=True,
               disable=True if rank else None)
    stop, stopped = runtime.StopSignals(), 0
    if progress.step == 0:
        run.log(step=0, parameters=sum(p.numel() for p in model.parameters()))
        run.evaluate_and_keep_best(evaluator, mixed, by_scores)
    while progress.step < cfg.max_steps and not stopped:
        started, lr = time.perf_counter(), cfg.lr * schedule(progress.step, cfg)
        stats = train_step(forward, batches, progress.step, optimizer, lr, mixed, cfg)
        run.record(stats, lr, time.perf_counter() - started, bar)
        is_last, stopped = progress.step == cfg.max_steps, stop.on_any_process()
        if progress.step % cfg.eval_interval == 0 or is_last:
            run.evaluate_and_keep_best(evaluator, mixed, by_scores)
        if (progress.step % cfg.save_interval == 0 and stats.is_finite) or is_last or stopped:
            run.save()
    bar.close()
    stop.restore()
    barrier()                                           # until the main process has written all
    if stopped and progress.step < cfg.max_steps:
        command = 'the same command' + ('' if cfg.resume else ' without --resume=False')
        print0(f'stopped and saved at step {progress.step} of {cfg.max_steps}; {command} resumes')
        sys.exit(128 + stopped)


def train_step(forward, batches, step, optimizer, lr, mixed, cfg):
    """Optimizer step `step`, from 0, over its cfg.accumulate batches, which the processes share.

    The gradient is that of the loss per target token: sums of losses are divided once, by the
    number of target tokens of the whole step. If it is not finite, no weight changes."""
    (rank, world), end = rank_and_world(), (step + 1) * cfg.accumulate
    parameters = [p for p in forward.parameters() if p.requires_grad]
    losses, n_targets = [], 0                           # a GPU is not waited for until the end
    for k in range(step * cfg.accumulate + rank, end, world):
        src, tgt = map(torch.from_numpy, batches[k])
        torch.manual_seed(cfg.seed + 1_000_003 * k)     # dropout is a function of the batch
        with forward.no_sync() if world > 1 and k + world < end else nullcontext():
            with mixed:
                loss, n = forward(src, tgt)
            loss.backward()
        losses.append(loss.detach())
        n_targets += n
    loss = sum(torch.stack(losses).tolist())
    if world > 1:
        totals = torch.tensor([loss, n_targets], dtype=torch.float64, device=parameters[0].device)
        dist.all_reduce(totals)
        loss, n_targets = totals.tolist()
    for p in parameters:
        p.grad.mul_(world / n_targets)                  # DDP has divided the sums by world
    norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip).item()
    stats = Stats(loss / n_targets, norm, int(n_targets))
    if stats.is_finite:
        for group in optimizer.param_groups:
            group['lr'] = lr
        optimizer.step()
    optimizer.zero_grad()
    return stats


def make_optimizer(model, cfg):
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{'params': [p for p in parameters if p.dim() == 2], 'weight_decay': cfg.weight_decay},
              {'params': [p for p in parameters if p.dim() != 2], 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=True)


def schedule(step, cfg):
    """The learning rate as a fraction of its peak: a linear rise, then a linear fall towards 0."""
    rise = max(1, round(cfg.warmup * cfg.max_steps))
    fall = max(1, cfg.max_steps - rise)
    return min((step + 1) / rise, (cfg.max_steps - step) / fall)


class Checkpoints:
    """What a run keeps in out_dir: last/ to resume, best/ to use, and log.jsonl."""
    def __init__(self, cfg, model, optimizer, state, text_hash):
        self.cfg, self.model, self.optimizer, self.text_hash = cfg, model, optimizer, text_hash
        self.out, self.is_main = Path(cfg.out_dir), rank_and_world()[0] == 0
        self.progress = state['progress'] if state else Progress()
        if state:
            self.restore()
        if self.is_main:
            self.begin_log()

    def save(self):
        """Writes last/: the model, and one file with all that resuming needs, of the same step."""
        if self.is_main:
            sync(self.out / 'log.jsonl')
            tensors = {}
            for name, p in self.model.named_parameters():
                tensors['weight.' + name] = p.detach()
                for key, t in self.optimizer.state.get(p, {}).items():
                    tensors[f'{key}.{name}'] = t
            figures = {'progress': asdict(self.progress), 'text_hash': self.text_hash,
                       'config': asdict(self.cfg)}
            with atomic_dir(self.out / 'last') as new:
                self.save_model(new)
                save_file(tensors, new / STATE, {'json': json.dumps(figures), 'crc32': '0' * 8})

    def save_model(self, folder):
        self.model.save(folder)
        self.write_settings(folder)

    def write_settings(self, folder):
        """Writes the settings of the run as run.json."""
        text = json.dumps(asdict(self.cfg), indent=1, ensure_ascii=False)
        (folder / 'run.json').write_text(text, encoding='utf-8')

    @torch.no_grad()
    def restore(self):
        """The inverse of `save`: weights, and AdamW's moments."""
        tensors = load_file(self.out / 'last' / STATE)
        for name, p in self.model.named_parameters():
            p.copy_(tensors[f'weight.{name}'])
            if f'step.{name}' in tensors:               # else it is frozen, or no step was finite
                self.optimizer.state[p] = {key: tensors[f'{key}.{name}'].to(p.device, copy=True)
                                           for key in ('exp_avg', 'exp_avg_sq', 'step')}
        print0(f'resuming from step {self.progress.step} of {self.cfg.max_steps}')

    def begin_log(self):
        """Removes what an earlier run left, after the step at which this one starts."""
        for path in [*self.out.glob('last.*.tmp'), *self.out.glob('best.*.tmp')]:
            shutil.rmtree(path)
        step, log = self.progress.step, self.out / 'log.jsonl'
        if not step:
            remove_checkpoint(self.out / 'last')
            remove_checkpoint(self.out / 'best')
        elif (self.out / 'best').is_dir():
            with atomic_dir(self.out / 'best') as new:
                self.write_settings(new)                # some may be new, such as data_from
        self.out.mkdir(parents=True, exist_ok=True)
        if log.exists():
            lines = log.read_bytes().split(b'\n')[:-1] if step else []
            kept = takewhile(lambda line: read_json_object(line, log)['step'] <= step, lines)
            os.truncate(log, sum(len(line) + 1 for line in kept))

    def log(self, **figures):
        """Adds a line to log.jsonl."""
        if self.is_main:
            with open(self.out / 'log.jsonl', 'a', encoding='utf-8') as file:
                file.write(json.dumps(figures) + '\n')

    def record(self, stats, lr, seconds, bar):
        """Counts and logs a step. Raises ValueError after MOST_SKIPPED skipped steps in a row."""
        p = self.progress
        p.step += 1
        figures = {'loss': stats.loss, 'tokens_per_s': stats.n_targets / seconds}
        if stats.is_finite:
            p.tokens, p.skipped = p.tokens + stats.n_targets, 0
        else:
            p.skipped += 1
            figures['skipped'] = p.skipped
            print0(f'step {p.step} is skipped: its loss is {stats.loss:.4g}, the norm of its '
                   f'gradient {stats.grad_norm:.4g}')
        bar.set_postfix({name: f'{x:.4g}' for name, x in figures.items()}, refresh=False)
        bar.update()
        self.log(step=p.step, tokens=p.tokens, lr=lr, grad_norm=stats.grad_norm, **figures)
        if p.skipped == MOST_SKIPPED:
            has_last = (self.out / 'last').is_dir()
            last = f'{self.out}/last is from before them. ' if has_last else ''
            raise ValueError(f'step {p.step}: {MOST_SKIPPED} steps in a row without a finite loss '
                             f'and gradient. {last}Try a lower --lr (with another --out_dir), or '
                             '--dtype=float32')

    def evaluate_and_keep_best(self, evaluator, mixed, by_scores):
        """Evaluates, prints and logs; keeps the best. Only the main process does this."""
        p = self.progress
        if self.is_main:
            with mixed, torch.inference_mode(), torch.compiler.set_stance('force_eager'):
                self.model.eval()
                losses, scores, lines = evaluator(self.model, p.step == self.cfg.max_steps)
                self.model.train()
            mean = sum(losses.values()) / len(losses)
            self.log(step=p.step, tokens=p.tokens, val=losses, val_mean=mean, scores=scores)
            print0(f'step {p.step}: held-out loss {mean:.3f} nats per token, mean of:')
            print0('\n'.join([*table(losses), *table(scores), *lines]))
            found = [-sum(scores.values()) / len(scores), mean] if by_scores else [mean]
            if p.step and found < p.best:
                p.best = found
                for name in 'metrics.json', 'predictions.jsonl':        # of the weights before
                    (self.out / 'best' / name).unlink(missing_ok=True)
                with atomic_dir(self.out / 'best') as new:
                    self.save_model(new)
        barrier()


def remove_checkpoint(folder):
    """Removes a checkpoint so that other programs see it whole or not at all."""
    if (folder / 'model.safetensors').is_file():
        shutil.rmtree(folder.rename(folder.with_name(f'{folder.name}.old.tmp')))


def read_state(cfg):
    """The state of a run in last/, {'progress', 'text_hash', 'config'}; None to start from scratch.

    Raises ValueError for a damaged file, and if a setting that affects the result has changed.
    """
    last = Path(cfg.out_dir, 'last')
    if not cfg.resume or not last.exists():
        return None
    try:
        check_folder(last)
        with safe_open(last / STATE, 'pt') as file:
            state = json.loads(file.metadata()['json'])
        state['progress'] = Progress(**state['progress'])
        before = type(cfg)(**cli.from_dict(type(cfg), state['config'], last))
    except (OSError, ValueError, TypeError, SafetensorError) as e:
        raise ValueError(f'{cfg.out_dir} cannot resume: {e}. Its best checkpoint may be whole; '
                         '--out_dir=NAME starts another, --resume=False replaces both') from e
    for f in fields(cfg):
        was, now = getattr(before, f.name), getattr(cfg, f.name)
        if not f.metadata['changeable'] and was != now:
            raise ValueError(f'{cfg.out_dir} holds a run with {f.name}={was!r}, not {now!r}. '
                             '--resume=False replaces it, --out_dir=NAME starts another beside it')
    return state


def check_start(cfg, state, text_hash):
    """Raises ValueError if a resumed run has other text than before, and if a new one would
    overwrite the weights that it begins from."""
    start, out = Path(start_folder(cfg)), Path(cfg.out_dir)
    if state and text_hash != state.get('text_hash'):
        raise ValueError(f'{out}: this run began with other text or another prepare.py. '
                         '--resume=False starts over, --out_dir=NAME starts another beside it')
    if not state and start.resolve() in [(out / name).resolve() for name in ('', 'last', 'best')]:
        raise ValueError(f'{start} is in out_dir={out}, which this run would overwrite; choose '
                         'another with --out_dir=NAME')


def evaluate(model, held_out, tokenizer, cfg, is_last):
    """Losses per target token (nats), scores by task, and lines with some sources and outputs."""
    losses, scores, lines = {}, {}, []
    for task in held_out:
        batches = val_batches(task, cfg, cfg.eval_segments)
        losses[task.name] = loss_of(model, batches)
        if task.objective == 'mlm':
            scores |= masked_accuracy(model, task, batches)
        elif task.kind == 'mt' and is_last and cfg.eval_translations:
            chosen = evenly_spaced(len(task), cfg.eval_translations)
            sources = [task.val_example(i)[0] for i in chosen]
            outputs, _ = generate_texts(model, tokenizer, sources, [task.target] * len(sources))
            references = [task.reference(i) for i in chosen]
            scores[f'chrF++ {task.source}-{task.target}'] = chrf(outputs, references)
    for task in [t for t in held_out if cfg.languages[0] in (t.source, t.target)][:3]:
        src, tgt = task.val_example(np.argsort(task.lengths[1])[len(task) // 2])
        if task.objective == 'mlm':
            output = tokenizer.decode(likeliest(model, *to_tensors(model, src[None], tgt[None])))
        else:
            [output], _ = generate_texts(model, tokenizer, [src], [task.target])
        lines += sample_lines(task.name, tokenizer.decode(src), output, tokenizer.decode(tgt))
    return losses, scores, lines


def sample_lines(name, source, output, reference):
    return [f'  {name}', f'    source     {source}', f'    output     {output}',
            f'    reference  {reference}']


def to_tensors(model, *arrays):
    return to_device(model, *map(torch.from_numpy, arrays))


def loss_of(model, batches):
    """The model's loss per target token, in nats, over pairs of arrays (B,S) and (B,T)."""
    losses, counts = zip(*(model.loss(*map(torch.from_numpy, batch)) for batch in batches))
    return sum(torch.stack(losses).tolist()) / sum(counts)


def likeliest(model, src, tgt):
    """The most likely token (N,) at each of the N masked positions of src (B,S)."""
    states = model.encode(src)[tgt != PAD]                                      # (N,C)
    return torch.cat([model.head(x).argmax(-1) for x in states.split(512)])


def masked_accuracy(model, task, batches):
    """The accuracy on masked tokens, of the model and of always predicting the commonest one."""
    pairs = [to_tensors(model, *batch) for batch in batches]
    found = torch.cat([likeliest(model, src, tgt) for src, tgt in pairs])
    masked = torch.cat([tgt[tgt != PAD] for _, tgt in pairs])
    return {f'accuracy {task.source}': (found == masked).float().mean().item(),
            f'commonest {task.source}': masked.bincount().max().item() / len(masked)}


def table(figures):
    """Lines of at most six numbers, one block per kind of task."""
    for kind in dict.fromkeys(name.split()[0] for name in figures):
        cells = [f'{name.split()[1]} {x:.3f}' for name, x in figures.items()
                 if name.startswith(kind + ' ')]
        for i in range(0, len(cells), 6):
            yield f'  {kind:9} ' + '  '.join(f'{cell:13}' for cell in cells[i:i + 6])


def weight_report(model):
    """Lines with the number of weights in each part of a model, and where they come from."""
    counts, seen = Counter(), set()
    for name, p in model.named_parameters(remove_duplicate=False):
        part, *rest = name.removeprefix('encoder.').split('.')
        if part == 'decoder':
            part = type(model.decoder[int(rest[0])]).__name__
        origin = 'tied' if p in seen else getattr(p, 'origin', 'random')    # see load_tensors
        counts[part, origin] += (p not in seen) * p.numel()
        seen.add(p)
    counts['total', ''] = counts.total()
    return '\n'.join(f'  {part:20}{n:>13,}  {origin}' for (part, origin), n in counts.items())


if __name__ == '__main__':
    cli.run(lambda argv: runtime.with_processes(train, cli.load(Train, argv)))
