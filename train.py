"""Training: `fit`, the loop that every objective shares, and pretraining (MLM of an encoder; DAE + MT of SWCM).

    python train.py config/tibetan.py --max_steps=1000
    torchrun --nproc_per_node=8 train.py config/tibetan_base.py

The same command goes on from where a run was stopped. Run only config files that you trust: they are Python.
"""
import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import config

if __name__ == '__main__':
    config.start(config.Train)                        # before torch, so that it answers at once

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.batches import Batches, task_probabilities, val_batches
from data.dataset import identity, open_streams, prepare
from data.metrics import chrf
from data.tasks import tasks
from data.text import SENTENCEPIECE, atomic_dir, atomic_write, path_in_errors, read_json_object, sync
from data.tokenizer import PAD, Tokenizer
from data.vocabulary import train_sentencepiece, vocabulary_text
from data.weights import read_metadata, read_safetensors, write_tensors
from model import SWCM, XLMR, SWCMConfig
from sample import write

STATE = 'training.safetensors'
# Dense bfloat16 peak in FLOP/s, from NVIDIA's data sheets
PEAK_FLOPS = {'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'A800': 312e12, 'L40S': 362e12, '4090': 165e12,
              '3090': 71e12}
PATIENT = []                                          # where there are several processes, the group that `wait` takes
MOST_SKIPPED = 5                                      # steps in a row without a finite loss and gradient: then it ends
# What a resumed run may change: nothing that bears on the model or on which batch comes when. (max_steps bears on the
# learning rate, which falls to 0 there, and device, dtype, compile and deterministic on the last bits.)
FREE = {'max_steps', 'out_dir', 'eval_interval', 'eval_segments', 'eval_translations', 'test_dataset', 'test_from',
        'save_interval', 'resume', 'device', 'dtype', 'compile', 'deterministic', 'workers', 'data_from', 'data',
        'test', 'eval_only', 'eval_examples', 'test_examples', 'beams', 'length_penalty', 'no_repeat_ngram',
        'force_script'}


def train(cfg):
    """Runs one config to its end: builds or reads the model, prepares the corpus, trains, writes cfg.out_dir."""
    if cfg.objective not in ('swcm', 'mlm'):
        raise ValueError(f'objective={cfg.objective!r}: choose swcm or mlm')
    state = read_state(cfg)
    if state and state['step'] >= cfg.max_steps:
        say(f'{cfg.out_dir} has done its {state["step"]} steps. --max_steps=N goes on, --resume=False starts over')
        return
    model, tokenizer = build(cfg, state)
    with main_process_first():
        folder = prepare(cfg.dataset, tokenizer, cfg.block_size, cfg.val_fraction, cfg.data_from or None, needed=True)
    if state and state['data'] != folder.name:
        raise ValueError(f'{cfg.out_dir}: the text of {cfg.dataset} has changed since this run began. '
                         '--resume=False starts over, --out_dir=NAME starts another beside it')
    found, val = (tasks(folder, split, tokenizer, cfg) for split in ('train', 'val'))
    tests = to_translate(val, tokenizer, cfg, model.config.max_length)
    say(f'{cfg.out_dir}: {cfg.objective} on {cfg.dataset}\n{model.weight_report()}')
    fit(cfg, model, Batches(found, task_probabilities(found, cfg.mt_fraction, cfg.alpha), cfg),
        lambda model, last: evaluate(model, val, tests if last else {}, tokenizer, cfg), state, folder.name)


def to_translate(val, tokenizer, cfg, max_length):
    """{name: task}: the held-out pairs and those of the test corpus, none where cfg asks for no translations."""
    found = [('chrF++', task) for task in val if task.kind == 'mt' and cfg.eval_translations]
    if found and cfg.test_dataset:
        with main_process_first():
            folder = prepare(cfg.test_dataset, tokenizer, max_length, 1.0, cfg.test_from or None)
        if not any('-' in name and set(name.split('-')) <= set(cfg.languages) for name in open_streams(folder, 'val')):
            raise ValueError(f'test_dataset={cfg.test_dataset!r} has no pairs of languages={",".join(cfg.languages)}')
        found += [(f'chrF++/{cfg.test_dataset}', task) for task in tasks(folder, 'val', tokenizer, cfg)
                  if task.kind == 'mt']
    return {f'{kind} {task.source}-{task.target}': task for kind, task in found}


def build(cfg, state):
    """The model, from cfg.encoder or from scratch, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    if state:                                                             # `restore` then fills in its weights
        last = Path(cfg.out_dir, 'last')
        try:
            model = SWCM.load(last) if cfg.objective == 'swcm' else XLMR.from_encoder(last, dropout=cfg.dropout)
        except (ValueError, OSError) as e:
            raise cannot_go_on(cfg, e) from e
    elif cfg.encoder:
        options = {'dropout': cfg.dropout, **({} if cfg.objective == 'swcm' else {'mlm_head': True})}
        if cfg.objective == 'swcm':
            options.update(languages=cfg.languages, share=cfg.share, insert_every=cfg.insert_every,
                           inserted=cfg.inserted, head=cfg.head)
        model = (SWCM if cfg.objective == 'swcm' else XLMR).from_encoder(start_folder(cfg), **options)
    elif cfg.objective == 'mlm':
        path = Path(cfg.out_dir, SENTENCEPIECE)
        with main_process_first() as is_main:
            if is_main:
                lines, counts = vocabulary_text(cfg.dataset, cfg.val_fraction, cfg.data_from or None)
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as temporary:
                    temporary.write_bytes(train_sentencepiece(lines, counts, cfg.vocab_size, cfg.character_coverage,
                                                              cfg.seed))
            pieces = path.read_bytes()
        model = XLMR(SWCMConfig(vocab_size=Tokenizer(pieces).vocab_size, n_layer=cfg.n_layer, n_head=cfg.n_head,
                                n_embd=cfg.n_embd, n_ffn=cfg.n_ffn, n_positions=cfg.block_size + 2,
                                dropout=cfg.dropout), pieces)
    else:
        raise ValueError("encoder='': objective=swcm starts from an encoder's folder, such as data/nano")
    if cfg.block_size > model.config.max_length:
        raise ValueError(f'block_size={cfg.block_size}: the encoder reads at most {model.config.max_length} tokens')
    return model, Tokenizer(model.sentencepiece, model.config.languages, model.config.vocab_size)


def mean_loss(losses, scores):
    return sum(losses.values()) / len(losses)


def fit(cfg, model, batches, evaluate, state=None, data='', badness=mean_loss):
    """Trains model from its weights, or from `state`, until cfg.max_steps; writes last/, best/ and log.jsonl.

    `model(src, tgt)` gives the sum of the token losses and the number of target tokens; `batches[k]` a pair of
    int64 arrays; `evaluate(model, last)` a dict of losses per token by name, one of other scores, and some lines to
    show (last: the run is at its end); the checkpoint of least `badness(losses, scores)`, of equal ones that of least
    loss, is the best; `data` names the text, so that no run goes on with another. The gradient of a step is that of the
    loss per target token over all its micro-batches and processes. On a CPU the same settings give the same bits,
    whether the run was stopped or not. A step without a finite loss and gradient changes no weight; MOST_SKIPPED in a
    row end the run with a ValueError, for which `batches.describe(k)` gives lines that say what was in them.
    """
    if cfg.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True, warn_only=True)
    device, dtype = config.find_device(cfg.device, cfg.dtype)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    out, start = Path(cfg.out_dir), start_of(cfg)
    step, tokens, best, skipped = 0, 0, [math.inf] * 2, [0, 0]            # skipped: steps, and those just now in a row
    model.to(device).train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in parameters.values() if p.dim() == 2], 'weight_decay': cfg.weight_decay},
         {'params': [p for p in parameters.values() if p.dim() != 2], 'weight_decay': 0.0}],
        lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=device.type in ('cpu', 'cuda'))
    if state:
        if start not in ('', state['start']):
            raise ValueError(f'{out}: the weights from which this run began have changed in their folder. '
                             '--resume=False starts over, --out_dir=NAME starts another beside it')
        step, tokens, best, skipped, start = (state[k] for k in ('step', 'tokens', 'best', 'skipped', 'start'))
        restore(cfg, parameters, optimizer)
    elif start and Path(start_folder(cfg)).resolve() in ((out / 'last').resolve(), (out / 'best').resolve()):
        raise ValueError(f'{start_folder(cfg)} lies in out_dir={out}, which this run would write over; --out_dir=NAME')
    saved, forward = step, model
    if cfg.compile:                                                       # by layer: few shapes, quick to compile
        for layer in (*model.encoder, *getattr(model, 'decoder', ())):
            layer.compile(dynamic=True)
    if world > 1:
        forward = DistributedDataParallel(model, device_ids=[device.index] if device.type == 'cuda' else None)
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' and dtype == torch.bfloat16 else ''
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    mine = cfg.accumulate // world                                        # micro-batches of this process in a step
    loader = iter(torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=cfg.workers, worker_init_fn=ignore_signals,
        pin_memory=device.type == 'cuda',
        sampler=(k * cfg.accumulate + rank + world * i for k in range(step, cfg.max_steps) for i in range(mine))))
    if rank == 0:
        tidy(out, state)
    log = Log(out, cfg, step) if rank == 0 else None
    bar = tqdm(total=cfg.max_steps, initial=step, unit='step', disable=True if rank else None, dynamic_ncols=True)

    def check(save):
        """Evaluates, shows and logs; keeps the best; all on the main process."""
        nonlocal best
        if rank:
            return wait()
        with mixed, torch.inference_mode(), torch.compiler.set_stance('force_eager'):
            model.eval()
            losses, scores, lines = evaluate(model, step == cfg.max_steps)
            model.train()
        mean = mean_loss(losses, scores)
        bad = [badness(losses, scores), mean]
        log.write(step=step, tokens=tokens, val=losses, val_mean=mean, scores=scores)
        tqdm.write(f'step {step}: held-out loss {mean:.3f} nats a token, mean of:')
        tqdm.write('\n'.join([*table(losses), *table(scores), *lines]))
        if save and bad < best:
            if math.isinf(best[0]):
                drop(out / 'best')                                        # of a run before
            best = bad
            model.save(out / 'best')
        wait()

    def save_last():
        nonlocal saved
        saved = step
        if rank == 0:
            sync(log.path)
            with atomic_dir(out / 'last') as new:
                model.save(new)
                write_state(new / STATE, cfg, parameters, optimizer, step=step, tokens=tokens, best=best,
                            skipped=skipped, data=data, start=start)

    stop = StopSignals()
    if step == 0:
        if rank == 0:
            log.write(step=0, parameters=sum(p.numel() for p in parameters.values()))
        check(save=False)
    else:
        say(f'going on from step {step} of {cfg.max_steps}')
        before = replace(cfg, max_steps=state['config']['max_steps'])
        if before.max_steps != cfg.max_steps:
            old, new = cfg.lr * schedule(step - 1, before), cfg.lr * schedule(step, cfg)
            say(f'  max_steps was {before.max_steps}: the learning rate goes from {old:.2g} to {new:.2g} now')
    while step < cfg.max_steps:
        started, lr = time.perf_counter(), cfg.lr * schedule(step, cfg)
        total, source_tokens = torch.zeros(3, dtype=torch.float64), 0     # loss, targets, signal
        for i in range(mine):
            k = step * cfg.accumulate + rank + world * i                  # the micro-batch; seeds its dropout
            torch.manual_seed(cfg.seed + 1_000_003 * k)
            src, tgt = next(loader)
            source_tokens += int((src != PAD).sum())
            src, tgt = src.to(device, non_blocking=True), tgt.to(device, non_blocking=True)
            with forward.no_sync() if world > 1 and i + 1 < mine else nullcontext():
                with mixed:
                    loss, n = forward(src, tgt)
                loss.backward()
            total[:2] += torch.stack([loss.detach(), n]).cpu()
        total[2] = stop.signal
        if world > 1:
            total = total.to(device)
            dist.all_reduce(total)
        loss_sum, n_targets, signalled = total.tolist()
        for p in parameters.values():
            p.grad.mul_(world / n_targets)                                # DDP has divided the sums by world
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), cfg.grad_clip).item()
        loss = loss_sum / n_targets
        if is_finite := math.isfinite(loss) and math.isfinite(norm):
            for group in optimizer.param_groups:
                group['lr'] = lr
            optimizer.step()
            tokens, skipped = tokens + int(n_targets), [skipped[0], 0]
        else:
            skipped = [n + 1 for n in skipped]
            say(f'step {step + 1} is skipped: its loss is {loss:.4g}, the norm of its gradient {norm:.4g} '
                f'({skipped[0]} skipped in all, {skipped[1]} in a row)')
        optimizer.zero_grad()
        step += 1
        seconds = time.perf_counter() - started
        figures = {'loss': loss, 'tokens_per_s': n_targets / seconds}
        if peak:
            figures['share_of_peak'] = model.flops(source_tokens * world, n_targets) / seconds / peak / world
        if not is_finite:
            figures['skipped'] = skipped[0]
        bar.set_postfix({k: f'{v:.4g}' for k, v in figures.items()}, refresh=False)
        bar.update()
        if rank == 0:
            log.write(step=step, tokens=tokens, lr=lr, grad_norm=norm, **figures)
        if skipped[1] == MOST_SKIPPED:
            diverged(cfg, batches, step, saved)
        last = step == cfg.max_steps
        if step % cfg.eval_interval == 0 or last:
            check(save=True)
        if step % cfg.save_interval == 0 and is_finite or last or signalled:
            save_last()
        if signalled:
            break
    bar.close()
    stop.restore()
    wait()                                                                # till the main process has written all
    if (stop.signal or signalled) and step < cfg.max_steps:
        command = 'the same command' + ('' if cfg.resume else ' without --resume=False')
        say(f'stopped and saved at step {step} of {cfg.max_steps}; {command} goes on from there')
        sys.exit(128 + (stop.signal or signal.SIGTERM))


def diverged(cfg, batches, step, saved):
    """Lists what the last MOST_SKIPPED steps had to learn, and ends the run with an error after them."""
    if dist.is_initialized() and dist.get_rank():
        sys.exit(1)                                                       # one says it for all
    for at in range(step - MOST_SKIPPED, step):
        for k in range(at * cfg.accumulate, (at + 1) * cfg.accumulate):
            say(f'step {at + 1}, batch {k}')
    good = f'{cfg.out_dir}/last, of step {saved}' if saved else 'none yet'
    raise ValueError(f'step {step}: {MOST_SKIPPED} steps in a row without a finite loss and gradient; their batches '
                     f'are listed above. The last good checkpoint: {good}. Try a lower --lr (with --out_dir=NAME, as '
                     'it makes another run), or --dtype=float32; the same command meets the same batches')


def schedule(step, cfg):
    """Share of the peak rate at a step: up from 0 in the first cfg.warmup of the steps, then linearly down to 0."""
    rise = max(1, round(cfg.warmup * cfg.max_steps))
    return min((step + 1) / rise, (cfg.max_steps - step) / max(1, cfg.max_steps - rise))


def evaluate(model, val, tests, tokenizer, cfg):
    """Losses per target token (nats) and scores, by task, and lines that show a few sources, outputs and references.

    Scores: for mlm the share of masked tokens at which the likeliest token is `right`, and at which the `commonest`
    one would be; for `tests`, a dict of translation tasks, chrF++ of the greedy output.
    """
    device, losses, scores = next(model.parameters()).device, {}, {}
    for task in val:
        batches = val_batches(task, cfg, cfg.eval_segments)
        losses[task.name] = loss_of(model, batches)
        if task.kind == 'mlm':
            right, seen = [], []
            for src, tgt in batches:
                src, tgt = torch.from_numpy(src).to(device), torch.from_numpy(tgt).to(device)
                seen.append(tgt[tgt != PAD])
                right.append(guess(model, src, tgt) == seen[-1])
            scores[f'right {task.source}'] = torch.cat(right).float().mean().item()
            scores[f'commonest {task.source}'] = torch.cat(seen).bincount().max().item() / len(torch.cat(seen))
    for name, task in tests.items():
        scores[name] = score_translations(model, task, tokenizer, cfg)
    lines = []
    for task in [t for t in val if cfg.languages[0] in (t.source, t.target)][:3]:
        i = np.argsort(task.lengths[1])[len(task) // 2]                   # one of middling length
        src, tgt = task.val_example(i)
        if task.kind == 'mlm':
            pair = (torch.from_numpy(x)[None].to(device) for x in (src, tgt))
            output = tokenizer.decode(guess(model, *pair).tolist())
        else:
            [(output, _)] = write(model, tokenizer, [src], [task.target])
        lines += [f'  {task.name}', f'    source     {tokenizer.decode(src)}', f'    output     {output}',
                  f'    reference  {tokenizer.decode(tgt)}']
    return losses, scores, lines


def loss_of(model, batches):
    """The model's loss per target token, in nats, over pairs of arrays (B,S) and (B,T)."""
    total, device = torch.zeros(2, dtype=torch.float64), next(model.parameters()).device
    for src, tgt in batches:
        total += torch.stack(model.loss(torch.from_numpy(src).to(device), torch.from_numpy(tgt).to(device))).cpu()
    return (total[0] / total[1]).item()


def guess(model, src, tgt):
    """The likeliest token (N,) at each of the N masked places of src (B,S)."""
    return torch.cat([model.head(x).argmax(-1) for x in model.encode(src)[tgt != PAD].split(512)])


def score_translations(model, task, tokenizer, cfg):
    """chrF++ of greedy output on at most cfg.eval_translations pairs, evenly spread."""
    chosen = np.linspace(0, len(task) - 1, min(len(task), cfg.eval_translations)).astype(int)
    sources = [task.val_example(i)[0] for i in chosen]
    outputs = [text for text, _ in write(model, tokenizer, sources, [task.target] * len(sources))]
    return chrf(outputs, [task.reference(i) for i in chosen])


def table(figures):
    """Lines of at most six figures, a kind of task a block."""
    for kind in dict.fromkeys(name.split()[0] for name in figures):
        cells = [f'{name.split()[1]} {value:.3f}' for name, value in figures.items() if name.startswith(kind + ' ')]
        for i in range(0, len(cells), 6):
            yield f'  {kind:9} ' + '  '.join(f'{cell:13}' for cell in cells[i:i + 6])


def start_of(cfg):
    """What tells the weights that cfg's run begins from from changed ones; '' where there are none, or not any more."""
    files = [Path(start_folder(cfg), name) for name in ('model.safetensors', 'pytorch_model.bin')]
    path = next((path for path in files if path.is_file() and start_folder(cfg)), None)
    written = read_metadata(path).get('crc32') if path and path.suffix == '.safetensors' else None
    return written or (identity(path) if path else '')


def start_folder(cfg):
    """The folder whose weights cfg's run begins from; '' for none."""
    return getattr(cfg, 'checkpoint', '') or config.find(cfg.encoder)


# What read_state asks for, and fit puts in
STATE_KINDS = {'step': int, 'tokens': int, 'best': list, 'skipped': list, 'data': str, 'start': str, 'config': dict}


def write_state(path, cfg, parameters, optimizer, **figures):
    """Writes all that resume needs into one file, so that it is of one step whenever the process dies."""
    tensors = {}
    for name, p in parameters.items():
        tensors['weight.' + name] = p.detach()
        for key, t in optimizer.state[p].items():                         # none if all steps were skipped
            tensors[f'{key}.{name}'] = t
    write_tensors(path, tensors, {'json': json.dumps({**figures, 'config': asdict(cfg)})})


def read_state(cfg):
    """What the state of cfg's run says beside its tensors, or None where there is none or cfg.resume is off.

    Raises ValueError for a damaged file, and where the run was made with other settings that bear on its result.
    """
    path = Path(cfg.out_dir, 'last', STATE)
    if not cfg.resume or not path.parent.exists() or getattr(cfg, 'eval_only', False) and not path.exists():
        return None
    if not path.is_file():
        raise cannot_go_on(cfg, f'{path} is missing')
    try:
        state = read_json_object(read_metadata(path).get('json', ''), f'the metadata of {path}')
    except ValueError as e:
        raise cannot_go_on(cfg, e) from e
    wrong = [key for key, kind in STATE_KINDS.items() if not isinstance(state.get(key), kind)]
    if wrong or state['step'] < 1 or [*map(type, state['best'] + state['skipped'])] != [float, float, int, int]:
        raise cannot_go_on(cfg, f'{path} has not what this version writes: {" ".join(wrong) or "step, best, skipped"}')
    ours = json.loads(json.dumps(asdict(cfg)))
    changed = [key for key in ours if key not in FREE and ours[key] != state['config'].get(key)]
    if changed:
        key = changed[0]
        raise ValueError(f'{cfg.out_dir} holds a run with {key}={state["config"].get(key)!r}, not {ours[key]!r}. '
                         '--resume=False replaces it, --out_dir=NAME starts another beside it')
    return state


def cannot_go_on(cfg, why):
    return ValueError(f'{cfg.out_dir} cannot go on: {why}. Its best checkpoint may be whole; --out_dir=NAME starts '
                      'another run beside it, --resume=False starts over and replaces both')


def restore(cfg, parameters, optimizer):
    """Fills weights and AdamW's moments from the state of cfg's run. Raises ValueError if it is not of this model."""
    try:
        tensors, _ = read_safetensors(Path(cfg.out_dir, 'last', STATE))
    except ValueError as e:
        raise cannot_go_on(cfg, e) from e
    order = [p for group in optimizer.param_groups for p in group['params']]
    names, moments = {p: name for name, p in parameters.items()}, {}
    kinds = ['weight', *(['exp_avg', 'exp_avg_sq', 'step'] if len(tensors) > len(names) else [])]
    with torch.no_grad():
        for i, p in enumerate(order):
            found = {key: tensors.get(f'{key}.{names[p]}') for key in kinds}
            if any(t is None or t.shape != (() if key == 'step' else p.shape) for key, t in found.items()):
                raise cannot_go_on(cfg, f'last/{STATE} is of another model than last/model.safetensors ({names[p]})')
            p.copy_(found.pop('weight'))
            if found:
                moments[i] = {key: t.clone() for key, t in found.items()}         # so that the file is not in use
    optimizer.load_state_dict({'state': moments, 'param_groups': optimizer.state_dict()['param_groups']})


def tidy(out, state):
    """Removes what a killed process left half written and, where a run starts over, the state of the one before."""
    for name in ('last.*.tmp', 'best.*.tmp', 'log.jsonl.tmp', 'config.json.tmp', 'best/*.jsonl.tmp', 'best/*.json.tmp'):
        for path in out.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not state:
        drop(out / 'last')


def drop(folder):
    """Removes a folder of checkpoints so that whoever reads it finds it whole or not at all."""
    if (folder / 'config.json').is_file():            # else it is not ours
        shutil.rmtree(folder.rename(folder.with_name(f'{folder.name}.old.tmp')))


class Log:
    """log.jsonl: a JSON object a line. A resumed run drops the lines behind the step from which it goes on."""

    def __init__(self, out, cfg, step):
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / 'config.json') as path:
            path.write_text(json.dumps(asdict(cfg), indent=1, ensure_ascii=False), encoding='utf-8')
        self.path = out / 'log.jsonl'
        old = self.path.read_bytes().split(b'\n')[:-1] if step and self.path.exists() else []  # whole lines
        kept = []
        for n, line in enumerate(old, 1):
            try:
                at = read_json_object(line, f'{self.path}: line {n}').get('step')
            except ValueError as e:
                if kept and json.loads(kept[-1])['step'] == step:         # written after the checkpoint: not needed
                    break
                raise ValueError(f'{e}; remove the line, or the file') from e
            if isinstance(at, int) and at <= step:
                kept.append(line + b'\n')
        with atomic_write(self.path) as path:
            path.write_bytes(b''.join(kept))

    def write(self, **figures):
        figures = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        with path_in_errors(self.path), open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(figures) + '\n')                        # JSON has no nan


class StopSignals:
    """Remembers Ctrl-C or SIGTERM so that the loop can save first; a second one ends the process at once."""

    def __init__(self):
        self.signal = 0
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number, frame):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        say('stopping after this step, or evaluation')

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_signals(worker):
    """Ctrl-C, and SIGTERM of a scheduler, reach all processes of a group; the main one decides when the workers end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def main_process_first():
    """The main process (True) does the block before the others (False) do, so that they find its files."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank:
        wait()
    yield rank == 0
    if rank == 0:
        wait()


def wait():
    """Waits for the other processes, however long one of them prepares text or evaluates; an error if one has died."""
    if PATIENT:
        dist.barrier(PATIENT[0])


def say(text):
    if not dist.is_initialized() or dist.get_rank() == 0:
        tqdm.write(text)


def with_processes(run, cfg):
    """Calls run(cfg) in the group of processes that torchrun has started, if it has."""
    if 'RANK' in os.environ:
        rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
        if cfg.accumulate % world:
            sys.exit(1 if rank else f'error: accumulate={cfg.accumulate}: give a multiple of the {world} processes, '
                     'which share the micro-batches of a step')
        dist.init_process_group()
        PATIENT.append(dist.new_group(backend='gloo', timeout=timedelta(days=7)))
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    run(cfg)
    if dist.is_initialized():
        dist.destroy_process_group()


def main(argv):
    cfg = config.load(config.Train, argv)
    with_processes(train, cfg)


if __name__ == '__main__':
    config.run(main)
