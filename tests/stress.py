"""Breaks things for some minutes, to show what README promises under "What you can rely on". Run by hand:

    python tests/stress.py                      all of it
    python tests/stress.py kills processes      some

It prints what it did and ends with exit status 1 where a promise is broken.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conftest                                       # first: it limits the threads
import numpy as np
import torch

import config
import finetune
import train
from data import tokens
from data.weights import read_safetensors
from model import SWCM

ROOT, STEPS = conftest.ROOT, 12
random.seed(0)


def kills(folder, n=50):
    """kill -9 at a random moment, n times; each run is gone on with until it ends, and equals an uninterrupted one."""
    done, while_writing, n_runs = 0, 0, 0
    for script, arguments in (('train', training(folder)), ('finetune', fine_tuning(folder))):
        whole = folder / f'{script}.whole'
        started = time.perf_counter()
        assert fork(script, arguments, whole, None) == 0, f'{script} failed'
        seconds, expected = time.perf_counter() - started, bits(whole)
        while done < n * (1 if script == 'finetune' else 0.6):
            out, status, n_runs = folder / f'{script}.killed', -signal.SIGKILL, n_runs + 1
            while status:
                status = fork(script, arguments, out, random.uniform(0, seconds))
                assert status in (0, -signal.SIGKILL), f'{script} does not go on: exit status {status}'
                done += status != 0
                while_writing += any(out.rglob('*.tmp'))
            assert bits(out) == expected, f'{out} differs from {whole}'
            shutil.rmtree(out)
    return (f'{done} kills in {n_runs} runs of train.py and finetune.py, {while_writing} of them while a file was being '
            'written: all went on, and weights, states and logs equal those of uninterrupted runs, byte for byte')


def fork(script, arguments, out, seconds):
    """Runs a script in a copy of this process, for so long; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = [f'{script}.py', *arguments, f'--out_dir={out}']
        try:
            config.run(sys.modules[script].main)
            os._exit(0)
        except SystemExit as e:
            print(e.code, file=sys.stderr)
            os._exit(1)
        finally:
            os._exit(2)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def bits(out):
    """What a run has left, by file, without what depends on the clock or says the folder's name."""
    found = {}
    for path in sorted(out.rglob('*')):
        if path.name == 'log.jsonl':
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found['log'] = [{k: v for k, v in line.items() if k != 'tokens_per_s'} for line in lines]
        elif path.suffix == '.safetensors':
            tensors, metadata = read_safetensors(path)
            state = json.loads(metadata.get('json', '{}'))
            state.pop('config', None)
            found[str(path.relative_to(out))] = state, {k: t.numpy().tobytes() for k, t in tensors.items()}
        elif path.is_file() and path.name not in ('config.json', 'metrics.json'):
            found[str(path.relative_to(out))] = path.read_bytes()
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_text().replace(out.name, 'OUT')
    return found


def training(folder):
    return ['--dataset=text', f'--data_from={folder}/corpus', f'--encoder={folder}/encoder', '--block_size=64',
            '--batch_tokens=400', '--accumulate=6', '--val_fraction=0.2', f'--max_steps={STEPS}', '--eval_interval=4',
            '--save_interval=1', '--eval_segments=4', '--device=cpu']


def fine_tuning(folder):
    return [f'--data={folder}/corpus/some.bo-zh.tsv', f'--encoder={folder}/encoder', '--max_source_len=60',
            '--max_target_len=60', '--batch_tokens=400', '--val_fraction=0.1', '--test_fraction=0.1', '--beams=2',
            f'--max_steps={STEPS}', '--eval_interval=4', '--save_interval=1', '--eval_examples=5', '--device=cpu']


def prepare():
    """A folder with a corpus and an encoder; token files go there too."""
    folder = Path(tempfile.mkdtemp(prefix='stress.'))
    (folder / 'corpus').mkdir()
    conftest.write_corpus(folder / 'corpus')
    conftest.make_encoder(folder / 'encoder', conftest.make_pieces())
    tokens.token_folder = lambda dataset: folder / 'tokens' / dataset
    return folder


def main(names):
    known = {f.__name__: f for f in (kills,)}
    if unknown := set(names) - set(known):
        sys.exit(f'error: {" ".join(unknown)}: choose from {" ".join(known)}')
    folder, broken = prepare(), False
    try:
        for name in names or known:
            started = time.perf_counter()
            try:
                result = known[name](folder)
            except AssertionError as e:
                result, broken = f'BROKEN: {e}', True
            print(f'{name} ({time.perf_counter() - started:.0f} s): {result}', flush=True)
    finally:
        shutil.rmtree(folder)
    sys.exit(broken)


if __name__ == '__main__':
    main(sys.argv[1:])
