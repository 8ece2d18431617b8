"""What this code does on a GPU: is it right, and how fast? One process, about nine minutes.

    python tests/tools/gpu.py --out=out/gpu --seconds=540
    python tests/tools/gpu.py --device=cpu --tiny       # only to see that every line of it runs
    python tests/tools/gpu.py --device=cpu --only counts        # what memory and products allow

Each section stands alone. After each, gpu.json has what was found, also the error if it failed.
Sections that the time no longer allows are left out. Sizes are those of CINO-base-v2 with the
paper's decoder, weights are random. Seconds are medians.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import config
import model as module
import train
from bench import Bert2Bert, flops
from config import cuda, runtime
from data.batches import collate
from data.tokenizer import BOS, EOS, PAD, UNK
from model import SWCM, SWCMConfig
from sample import search

FULL = dict(vocab_size=135359, insert_every=3, languages=('bo',), dropout=0.1)
TINY = {**FULL, 'vocab_size': 500, 'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'n_ffn': 64,
        'insert_every': 1}

PEAKS = {'H100': (989e12, 3.35e12), 'H200': (989e12, 4.8e12)}   # NVIDIA: bfloat16 FLOP/s, bytes/s


class Setup:
    """The device, and what depends on the size."""
    def __init__(self, device, tiny):
        self.device, self.dtype = runtime.find_device(device, 'bfloat16')
        self.is_gpu, self.tiny = self.device.type == 'cuda', tiny
        self.sizes = TINY if tiny else FULL
        self.length, self.n_texts, self.n_new = (20, 3, 6) if tiny else (256, 64, 128)
        self.batch_tokens = [300, 600] if tiny else [25600, 51200, 102400]
        self.steps, self.runs = (3, 2) if tiny else (12, 5)

    def model(self, **options):
        torch.manual_seed(1)
        return SWCM(SWCMConfig(**{**self.sizes, **options})).to(self.device)

    def mixed(self):
        return torch.autocast(self.device.type, self.dtype)

    def wait(self):
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, run, n=0):
        """The first and the median of n more runs."""
        times = []
        for _ in range(1 + (n or self.runs)):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - started)
        return {'first': times[0], 'median': statistics.median(times[1:])}

    def peak(self):
        """GiB that PyTorch has allocated at most since the last call."""
        if not self.is_gpu:
            return 0
        found = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return found


class Ragged:
    """Batch k of random ids, of lengths as in a corpus: on average `tokens`, source and target."""
    def __init__(self, s, tokens):
        self.c, self.longest, self.tokens = SWCMConfig(**s.sizes), s.length, tokens

    def __getitem__(self, k):
        rng = np.random.default_rng(k)
        length = rng.integers(self.longest // 3, self.longest)          # batches of similar lengths
        lengths = np.maximum(4, length - rng.integers(0, 1 + length // 8, (
            max(2, round(self.tokens / (1.9 * length))), 2)))
        return collate([[self.text(rng, n) for n in row] for row in lengths])

    def text(self, rng, n):
        ids = rng.integers(UNK + 1, self.c.vocab_size - 1, n)
        ids[[0, 1, -1]] = BOS, self.c.vocab_size, EOS
        return ids


def about(s):
    """Versions, the card, and the kernels that attention uses."""
    q = torch.randn(2, 12, 200, 64, device=s.device, dtype=s.dtype)
    mask = torch.ones(2, 1, 1, 200, dtype=torch.bool, device=s.device)
    return {'torch': torch.__version__, 'cuda': torch.version.cuda,
            'device': torch.cuda.get_device_name() if s.is_gpu else 'cpu',
            'compiles': runtime.can_compile(s.device), 'allocator': str(s.is_gpu and (
                torch.cuda.memory._snapshot().get('allocator_settings'))),
            'causal': slowest(s, lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True)),
            'masked': slowest(s, lambda: F.scaled_dot_product_attention(q, q, q, mask))}


def slowest(s, run, n=1):
    """{kernel or operator: milliseconds} of the n that take longest."""
    run()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if s.is_gpu else kinds.CPU]) as profile:
        run()
        s.wait()
    key = 'self_device_time_total' if s.is_gpu else 'self_cpu_time_total'
    found = sorted(((getattr(e, key) / 1e3, e.key[:90]) for e in profile.key_averages()))
    return {name: ms for ms, name in found[::-1][:n]}


def ceilings(s):
    """GB/s of a copy, TFLOP/s of the products of a training step."""
    c, n = SWCMConfig(**s.sizes), s.batch_tokens[0] // 2
    x = torch.randn(2**18 if s.tiny else 2**28, device=s.device)
    y, found = torch.empty_like(x), {}
    found['copy GB/s'] = 8 * x.numel() / 1e9 / s.seconds(lambda: y.copy_(x))['median']
    for rows, width, out in ((n, c.n_embd, c.n_embd), (n, c.n_embd, c.n_ffn),
                             (n, c.n_ffn, c.n_embd), (4096, c.n_embd, c.n_rows),
                             (4096, c.n_rows, c.n_embd)):
        a, b = (torch.randn(*size, device=s.device, dtype=s.dtype)
                for size in ((rows, width), (width, out)))
        found[f'{rows} x {width} x {out} TFLOP/s'] = (
            2 * rows * width * out / 1e12 / s.seconds(lambda: a @ b)['median'])
    return found


def attention(s):
    """Milliseconds of attention with a mask, forward and backward, at shapes not seen before."""
    found = {}
    for n in range(s.length // 2, s.length // 2 + 7):
        q, kv = (torch.randn(8, 12, m, 64, device=s.device, dtype=s.dtype, requires_grad=True)
                 for m in (n, n + 3))
        mask = torch.ones(8, 1, 1, n + 3, dtype=torch.bool, device=s.device)

        def run():
            F.scaled_dot_product_attention(q, kv, kv, mask).sum().backward()
        found[n] = {name: 1e3 * x for name, x in s.seconds(run, 3).items()}
    return found


def not_finite(s):
    """How many gradients are not finite where cuDNN gave NaN (pytorch issue 196678)."""
    found = {}
    for n in (64, 192, 320):
        q, k, v = (0.1 * torch.randn(1, 1, n, 64, device=s.device, dtype=s.dtype) for _ in range(3))
        q[..., 0], k[..., 0] = 1, -120 * 8
        inputs = [x.requires_grad_() for x in (q, k, v)]
        mask = torch.ones(n, n, dtype=torch.bool, device=s.device).tril()
        F.scaled_dot_product_attention(*inputs, mask).sum().backward()
        found[n] = sum((~x.grad.isfinite()).sum().item() for x in inputs)
    return found


def gradients(s):
    """Relative errors of the gradients in bfloat16, judged by float64; are two runs equal?"""
    batch, exact = [*map(torch.from_numpy, Ragged(s, s.batch_tokens[0] // 8)[0])], None
    found = {}
    for name in ('float64', 'float32', 'eager', 'again', 'compiled'):
        model = s.model(n_layer=2, insert_every=1, dropout=0.0).train()
        if name == 'float64':
            model.double()
        if name == 'compiled':
            compile_parts(s, model)
        with s.mixed() if name[:5] != 'float' else nullcontext():
            loss, n = model.loss(*batch)
        loss.backward()
        grads = {key: p.grad.double() for key, p in model.named_parameters()}
        exact = exact or (loss.item(), grads)
        errors = {key: ((g - exact[1][key]).norm() / exact[1][key].norm()).item()
                  for key, g in grads.items() if exact[1][key].norm() > 1e-6}
        worst = max(errors, key=errors.get)
        found[name] = {'loss': loss.item() / exact[0] - 1, 'worst': errors[worst], 'of': worst,
                       'median': statistics.median(errors.values())}
        if name == 'eager':
            first = grads
        if name == 'again':
            found['equal'] = all(torch.equal(g, first[key]) for key, g in grads.items())
    return found


def compile_parts(s, model):
    for part in model.modules():
        if isinstance(part, train.COMPILED):
            part.compile(dynamic=True, **({} if s.is_gpu else {'backend': 'eager'}))


def resume(s):
    """The largest difference of losses between a run, and one that stopped after step 2."""
    logs = []
    for stops in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            cfg = settings(s, folder, max_steps=4, save_interval=2, eval_interval=3, compile=False)
            sizes = dict(n_layer=2, insert_every=1)
            if stops:
                calls = iter([({'x': 1.0}, {}, [])])        # at step 3 there is no other
                try:
                    fit(s, cfg, s.batch_tokens[0], lambda *_: next(calls), **sizes)
                except StopIteration:
                    pass
            logs.append([line['loss'] for line in fit(s, cfg, s.batch_tokens[0], **sizes)])
    return max(abs(a - b) for a, b in zip(*logs, strict=True))


def settings(s, folder, **options):
    return config.Train(**{**dict(device=s.device.type, dtype='bfloat16', out_dir=folder, lr=1e-4,
                                  eval_interval=10**6, save_interval=10**6), **options})


def fit(s, cfg, tokens, evaluator=lambda *_: ({'x': 1.0}, {}, []), **options):
    """The lines of log.jsonl of train.fit's steps."""
    state = train.read_state(cfg)
    train.fit(cfg, s.model(**options), Ragged(s, tokens), evaluator, state)
    lines = map(json.loads, Path(cfg.out_dir, 'log.jsonl').read_text().splitlines())
    return [line for line in lines if 'loss' in line]


def training(s):
    """Target tokens/s of train.fit, four micro-batches a step, by tokens of a micro-batch."""
    found, sizes, written = {}, s.batch_tokens, []

    def evaluate(model, is_last):
        src, _ = Ragged(s, 8 * s.length)[0]
        written.append(search(model, torch.from_numpy(src).to(s.device), ['bo'] * len(src),
                              [s.n_new] * len(src), 4))
        return {'x': 1.0}, {}, []
    for name, tokens, compiled in (('eager', sizes[0], False), *(
            (f'compiled, {n} tokens', n, True) for n in sizes)):
        s.peak()
        with tempfile.TemporaryDirectory() as folder:
            cfg = settings(s, folder, max_steps=s.steps, accumulate=4, compile=compiled)
            started = time.perf_counter()
            try:
                lines = fit(s, cfg, tokens, evaluate)
            except torch.OutOfMemoryError:
                found[name] = 'out of memory'
                continue
        rates = [line['tokens_per_s'] for line in lines]
        found[name] = {'tokens/s': statistics.median(rates[len(rates) // 2:]), 'GiB': s.peak(),
                       'first': rates[0], 'seconds': time.perf_counter() - started}
    return found


def profile(s):
    """Of a micro-batch, compiled: milliseconds, kernels, TFLOP/s, and the slowest kernels."""
    model = s.model().train()
    compile_parts(s, model)
    src, tgt = map(torch.from_numpy, Ragged(s, s.batch_tokens[0])[0])

    def run():
        with s.mixed():
            loss, _ = model.loss(src, tgt)
        loss.backward()
        model.zero_grad()
    seconds = s.seconds(run)
    return {**seconds, 'TFLOP/s': flops(model, src.numel(), tgt.numel()) / 1e12 / seconds['median'],
            'slowest': slowest(s, run, 25)}


class Count(TorchDispatchMode):
    """Notes (FLOP, bytes read and written) of each kernel that is called."""
    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, op._overloadpacket
        out = op(*args, **kwargs)
        read, written = ([t for t in tree_leaves(x) if isinstance(t, torch.Tensor)]
                         for x in ((args, kwargs), out))
        if written and not op.is_view and 'empty' not in str(op):
            if packet in (torch.ops.aten.embedding, torch.ops.aten.index):
                read = written                              # the rows that are picked
            if packet == torch.ops.aten.index_put_:
                read = written = [args[2]]
            flop = flop_registry.get(packet, lambda *_, **__: 0)(*args, **kwargs, out_val=out)
            self.kernels.append((flop, sum(min(t.numel() * t.element_size(),    # once if expanded
                                               t.untyped_storage().nbytes())
                                           for t in read + written)))
        return out


def fused_attention(q, k, v, mask, p, causal):
    """scaled_dot_product_attention by the kernels that a GPU would use."""
    if causal:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, p, True)[0]
    bias = q.new_zeros(()).masked_fill(~mask, -torch.inf).expand(-1, q.shape[1], q.shape[2], -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, p)[0]


def counts(s):
    """Forward and backward pass of a micro-batch, not compiled, with tensors without values: TFLOP,
    GB read and written, kernels, GiB kept for the backward pass. Target tokens/s on a card if each
    kernel took only the time that its FLOP or its bytes need at the peak, and of products alone."""
    batch, kept = Ragged(s, s.batch_tokens[0])[0], {}
    n = int((batch[1][:, 2:] != PAD).sum())

    def keep(t):
        kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t
    as_on_a_gpu = (mock.patch.object(F, 'scaled_dot_product_attention', fused_attention),
                   mock.patch.object(F, 'dropout', lambda x, p, training, inplace:
                                     torch.native_dropout(x, p, training)[0]),
                   mock.patch.object(FakeTensor, 'is_cuda', True, create=True))
    with ExitStack() as stack, Count() as count:
        for context in (FakeTensorMode(), torch.autocast('cpu', torch.bfloat16), *as_on_a_gpu):
            stack.enter_context(context)
        model = SWCM(SWCMConfig(**s.sizes)).train()
        src, tgt, at = (torch.zeros(size, dtype=torch.long)
                        for size in (*(x.shape for x in batch), (n,)))
        count.kernels.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            x = model.states(tgt[:, :-1], model.encoder.encode(src), src)
            model.encoder.head.loss(x.flatten(0, 1)[at], at).backward()
    for p in model.parameters():
        kept.pop(p.untyped_storage()._cdata, None)
    found = {'source': batch[0].shape, 'target': batch[1].shape, 'targets': n,
             'kernels': len(count.kernels),
             'TFLOP': sum(flop for flop, _ in count.kernels) / 1e12,
             'GB': sum(size for _, size in count.kernels) / 1e9,
             'kept GiB': sum(kept.values()) / 2**30}
    for card, (flops_s, bytes_s) in PEAKS.items():
        seconds = [(flop, max(flop / flops_s, size / bytes_s)) for flop, size in count.kernels]
        found[card] = {'tokens/s': n / sum(t for _, t in seconds),
                       'products alone': n / sum(t for flop, t in seconds if flop)}
    return found


def head(s):
    """Milliseconds of head and loss with gradients, by logits at a time."""
    model, n, found = s.model(), s.batch_tokens[0] // 2, {}
    labels = torch.randint(4, s.sizes['vocab_size'], (n,), device=s.device)
    x = torch.randn(n, model.config.n_embd, device=s.device, requires_grad=True)

    def run():
        with s.mixed():
            model.encoder.head.loss(x, labels).backward()
        model.zero_grad()
    for name in ('eager', 'compiled'):
        for bits in (27, 28, 29, 30):
            module.GPU_LOGITS = 2**bits
            found[f'{name}, 2^{bits} logits'] = {k: 1e3 * t for k, t in s.seconds(run).items()}
        compile_parts(s, model)
    module.GPU_LOGITS = 2**28
    return found


def writing(s):
    """Of short texts in float32, how many are the same as on a CPU, with 1 and 4 beams."""
    torch.set_float32_matmul_precision('highest')
    model, found = s.model(n_layer=2, insert_every=1).eval(), {}
    src = torch.from_numpy(Ragged(s, 16 * s.length)[0][0])
    limits, languages = [s.n_new - i % 5 for i in range(len(src))], ['bo'] * len(src)
    for beams in (1, 4):
        ours = search(model.to(s.device), src.to(s.device), languages, limits, beams)
        theirs = search(model.cpu(), src, languages, limits, beams)
        found[beams] = sum(a[0][0] == b[0][0] for a, b in zip(ours, theirs)) / len(src)
    torch.set_float32_matmul_precision('high')
    return found


def long_texts(s):
    """The search for n_new tokens with 5 beams for each text, outputs that end at their limit."""
    src = torch.randint(4, s.sizes['vocab_size'] - 1, (s.n_texts, s.n_new), device=s.device)
    src[:, 0], src[:, -1] = BOS, EOS
    model = s.model().eval()
    model.encoder.head.bias.data[EOS] = -1e4

    def run():
        with s.mixed():
            found = search(model, src, ['bo'] * len(src), [s.n_new] * len(src), 5)
        assert all(len(texts[0][0]) == s.n_new for texts in found)
        return found
    return src, run


def generation(s):
    """Tokens/s with 5 beams, all texts together: ours, transformers."""
    (src, run), found = long_texts(s), {}
    s.peak()
    found['swcm'] = {**s.seconds(run, 3), 'GiB': s.peak(), 'slowest': slowest(s, run, 12)}
    if not s.tiny:
        theirs = Bert2Bert(s.sizes['vocab_size'])
        theirs.module.to(s.device, s.dtype).eval()
        for name, options in (('bert2bert', {}), ('bert2bert, static cache', {
                'cache_implementation': 'static', 'disable_compile': True})):
            theirs.options = options
            found[name] = s.seconds(lambda: theirs.decode(src, s.n_new, 5), 1)
    for row in found.values():
        row['tokens/s'] = s.n_texts * s.n_new / row['median']
    return found


def recorded(s):
    """`generation` of ours in recorded steps, and the fraction of texts that are then the same."""
    _, run = long_texts(s)
    expected = run()
    with mock.patch.object(cuda, 'ENABLED', True):
        row = {**s.seconds(run, 3), 'slowest': slowest(s, run, 12)}
        same = sum(a[0][0] == b[0][0] for a, b in zip(run(), expected)) / len(expected)
    return {**row, 'tokens/s': s.n_texts * s.n_new / row['median'], 'same': same}


SECTIONS = (about, counts, not_finite, ceilings, attention, gradients, writing, resume, head,
            training, generation, recorded, profile)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', help='cuda (default) or cpu')
    parser.add_argument('--tiny', action='store_true', help='a small model')
    parser.add_argument('--out', default='out/gpu', help='folder for gpu.json')
    parser.add_argument('--seconds', type=float, default=540, help='no section begins after these')
    parser.add_argument('--only', nargs='+', choices=[f.__name__ for f in SECTIONS])
    args = parser.parse_args()
    started, found = time.perf_counter(), {}
    s, out = Setup(args.device, args.tiny), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        name, begun = section.__name__, time.perf_counter()
        if begun - started > args.seconds or args.only and name not in args.only:
            continue
        try:
            found[name] = section(s)
        except Exception:                               # the other sections still tell something
            found[name] = {'error': traceback.format_exc()}
        found[name] = {'found': found[name], 'seconds': time.perf_counter() - begun}
        print(json.dumps({name: found[name]}), flush=True)
        (out / 'gpu.json').write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    failed = [name for name, x in found.items() if 'error' in str(x['found'])[:9]]
    sys.exit(f'failed: {" ".join(failed)}' if failed else 0)


if __name__ == '__main__':
    main()
