"""Breaks things for some minutes, to show what README promises. Run by hand:

    python tests/robustness/stress.py                      all of it
    python tests/robustness/stress.py kills disk           some

It says what it saw, a line each, and ends with exit status 1 where a promise is broken.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # first: it limits the threads
from safetensors import safe_open

import config
import finetune
import train
from config import cli
from data import dataset
from data.files import check_folder
from model import SWCM

MAINS = {'train': (config.Train, train.train), 'finetune': (config.FineTune, finetune.finetune)}
STEPS = 12
dice = random.Random(0)


def kills(folder, n=50):
    """kill -9 at a random moment, n times; a run that goes on ends like an uninterrupted one."""
    done, while_writing, n_runs = 0, 0, 0
    for script, n_until in (('train', n * 3 // 5), ('finetune', n)):
        started = time.perf_counter()
        assert finish(start(script, folder, 'whole')) == 0, f'{script}.py failed'
        seconds, expected = time.perf_counter() - started, left_by(folder / 'whole')
        while done < n_until:
            status, n_runs = -signal.SIGKILL, n_runs + 1
            while status:
                child = start(script, folder, 'killed')
                if done < n:
                    time.sleep(dice.uniform(0, seconds))
                    os.kill(child, signal.SIGKILL)
                status = finish(child)
                message = f'{script}.py does not go on: exit status {status}'
                assert status in (0, -signal.SIGKILL), message
                done += status != 0
                while_writing += any((folder / 'killed').rglob('*.tmp'))
            same = left_by(folder / 'killed') == expected
            assert same, f'a killed run of {script}.py ends otherwise'
            shutil.rmtree(folder / 'killed')
        shutil.rmtree(folder / 'whole')
    assert while_writing > n // 16, f'only {while_writing} kills while a file was written'
    return (f'{done} kills in {n_runs} runs of train.py and finetune.py, {while_writing} of them '
            'while a file was written: all went on, and checkpoints, states and logs equal those '
            'of uninterrupted runs, bit for bit')


def signals(folder, n=8):
    """Ctrl-C and SIGTERM end a run and its worker with a message; it goes on to the same bits."""
    finish(start('train', folder, 'whole'))
    expected = left_by(folder / 'whole')
    for i in range(n):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        child = start('train', folder, 'stopped')
        wait_for_step(folder / 'stopped', dice.randint(1, STEPS - 3))
        os.killpg(child, number)
        status, said = finish(child), (folder / 'said').read_text()
        match = re.search(rf'stopped and saved at step (\d+) of {STEPS}; the same command resumes',
                          said)
        assert status == 128 + number, f'signal {number}: exit status {status}'
        assert match, f'signal {number}: {said[-300:]!r}'
        assert step_of(folder / 'stopped/last') == int(match[1])
        assert finish(start('train', folder, 'stopped')) == 0
        assert left_by(folder / 'stopped') == expected, 'a stopped run ends otherwise'
        shutil.rmtree(folder / 'stopped')
    shutil.rmtree(folder / 'whole')
    return (f'{n} times Ctrl-C or SIGTERM: saved, said so, ended with status 130 or 143, and went '
            'on to the same bits')


def reader(folder):
    """A process that reads last/ and best/ without a pause while another writes them."""
    child = start('train', folder, 'read', '--max_steps=40', '--eval_interval=1')
    n, steps = dict.fromkeys(['last', 'best'], 0), set()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        for name in n:
            if (folder / 'read' / name).exists():
                check_folder(folder / 'read' / name)
                SWCM.load(folder / 'read' / name)
                n[name] += 1
        if (folder / 'read/last').exists():
            steps.add(step_of(folder / 'read/last'))
    assert min(n.values()) > 20 and len(steps) > 10, f'too little was read: {n}, {len(steps)} steps'
    shutil.rmtree(folder / 'read')
    return (f'{n["last"]} times last/ and {n["best"]} times best/ were read while they were '
            f'written, and {len(steps)} states: all whole')


def disk(folder):
    """A file system runs full at several points of a checkpoint, then is mounted read-only."""
    inside = ['unshare', '-rm', sys.executable, __file__, '--disk', str(folder)]
    if not shutil.which('unshare') or subprocess.run(['unshare', '-rm', 'true'],
                                                     capture_output=True).returncode:
        return 'not tried: needs Linux\'s unshare'
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    return done.stdout.strip()


def on_a_small_disk(folder):
    out = folder / 'disk'
    out.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', out], check=True)
    assert finish(start('train', folder, 'disk/run', '--max_steps=2')) == 0
    before, lines = left_by(out / 'run'), []
    # a checkpoint has 0.45 + 1.35 MB, and so has the one before
    for free in range(0, 8_000_000, 300_000):
        with open(out / 'filler', 'wb') as file:
            file.write(bytes(max(0, shutil.disk_usage(out).free - free)))
        status = finish(start('train', folder, 'disk/run', '--max_steps=3'))
        (out / 'filler').unlink()
        if status == 0:
            break
        lines.append((folder / 'said').read_text().strip().splitlines()[-1])
        assert status == 1 and lines[-1].startswith('error: '), (status, lines[-1])
        assert 'No space left' in lines[-1], lines[-1]
        now = left_by(out / 'run')
        SWCM.load(out / 'run/best')
        changed = [name for name, value in before.items() if name.startswith('last')
                   and now.get(name) != value]
        assert not changed, f'with {free:,} bytes free, {changed} changed'
        assert not list(out.rglob('*.tmp')), f'left behind: {list(out.rglob("*.tmp"))}'
    assert len(lines) > 5, f'{len(lines)} times full'
    assert status == 0, f'exit status {status}: {lines[-1:]}'
    subprocess.run(['mount', '-o', 'remount,ro', out], check=True)
    status = finish(start('train', folder, 'disk/run', '--max_steps=4'))
    said = (folder / 'said').read_text().strip()
    assert status == 1 and said.splitlines()[-1].startswith('error: ') and 'Read-only' in said, said
    last = lines[-1].replace(str(out), '...')
    print(f'{len(lines)} times a full disk, from which the run went on, then a read-only one: each '
          'time one line, exit status 1, and the checkpoint before whole. '
          f'The line: {last}')


def fuzz(folder):
    """The properties of tests/robustness/test_hostile.py, with many cases each."""
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-m', 'full', '-x',
                           'tests/robustness/test_hostile.py', '--hypothesis-show-statistics'],
                          cwd=conftest.ROOT, capture_output=True, text=True,
                          env={**os.environ, 'CASES': 'many'})
    assert done.returncode == 0, '\n'.join(line for line in done.stdout.splitlines()
                                           if re.match('E |FAILED', line))
    n = [int(n) for n in re.findall(r'generate phase.*\n(?:.*\n)*?.*- (\d+) passing', done.stdout)]
    assert sum(n) >= 2000, f'{sum(n)} cases'
    return f'{sum(n):,} cases of {len(n)} properties: each a right result or one line'


def start(script, folder, out, *more):
    """Runs a script in a copy of this process; its number. What it prints goes to folder/said."""
    child = os.fork()
    if not child:
        os.setsid()
        said = os.open(folder / 'said', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (open(n, 'w', encoding='utf-8', buffering=1) for n in (1, 2))
        sys.argv = [f'{script}.py', *(training if script == 'train' else fine_tuning)(folder),
                    f'--out_dir={folder / out}', *more]
        status = 0
        try:
            cls, main = MAINS[script]
            cli.run(lambda argv: main(cli.load(cls, argv)))
        except SystemExit as e:
            if isinstance(e.code, str):
                print(e.code)
            status = e.code if isinstance(e.code, int) else 1
        except BaseException as e:
            print(f'Traceback: {e!r}')
            status = 2
        os._exit(status)
    return child


def finish(child):
    """Waits for it; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_step(out, step):
    started = time.perf_counter()
    log = out / 'log.jsonl'
    while not log.exists() or log.read_text().count('\n') < step + 2:
        time.sleep(0.01)
        assert time.perf_counter() - started < 120, f'{out} comes to no step {step}'


def training(folder):
    return ['--dataset=text', f'--data_from={folder}/corpus', f'--encoder={folder}/encoder',
            '--block_size=64', '--batch_tokens=400', '--accumulate=2', '--val_fraction=0.2',
            f'--max_steps={STEPS}', '--eval_interval=4', '--save_interval=1', '--eval_segments=4',
            '--device=cpu']


def fine_tuning(folder):
    return [f'--data={folder}/corpus/some.bo-zh.tsv', f'--encoder={folder}/encoder',
            '--max_source_len=60', '--max_target_len=60', '--batch_tokens=400',
            '--val_fraction=0.1', '--test_fraction=0.1', '--beams=2',
            f'--max_steps={STEPS}', '--eval_interval=4', '--save_interval=1', '--eval_examples=5',
            '--device=cpu']


def read_safetensors(path):
    """The metadata, with their `json` as a dict, and the bytes of the tensors by name."""
    with safe_open(path, 'np') as file:
        metadata = {name: json.loads(value) if name == 'json' else value
                    for name, value in file.metadata().items()}
        return metadata, {name: file.get_tensor(name).tobytes() for name in file.keys()}


def step_of(last):
    metadata, _ = read_safetensors(last / train.STATE)
    return metadata['json']['progress']['step']


def left_by(out):
    """What a run has left, by file, but for what depends on the clock or has the folder's name."""
    found = {}
    for path in sorted(path for path in out.rglob('*') if path.is_file()):
        name = str(path.relative_to(out))
        if path.name == 'log.jsonl':
            lines = map(json.loads, path.read_text(encoding='utf-8').splitlines())
            found[name] = [{k: v for k, v in line.items() if k != 'tokens_per_s'} for line in lines]
        elif path.suffix == '.safetensors':
            metadata, tensors = read_safetensors(path)
            metadata.pop('crc32')         # the library writes metadata in an order of its own
            metadata.get('json', {}).pop('config', None)
            found[name] = metadata, tensors
        else:
            found[name] = path.read_bytes().replace(str(out).encode(), b'OUT')
    return found


def main(names):
    parts = {f.__name__: f for f in (kills, signals, reader, disk, fuzz)}
    if names[:1] == ['--disk']:
        dataset.token_folder = lambda dataset: Path(names[1], 'tokens', dataset)
        return on_a_small_disk(Path(names[1]))
    if unknown := set(names) - set(parts):
        sys.exit(f'error: {" ".join(unknown)}: choose from {" ".join(parts)}')
    folder, broken = Path(tempfile.mkdtemp(prefix='stress.')), False
    dataset.token_folder = lambda dataset: folder / 'tokens' / dataset
    try:
        (folder / 'corpus').mkdir()
        conftest.write_corpus(folder / 'corpus')
        conftest.make_encoder(folder / 'encoder', conftest.make_pieces())
        for name in names or parts:
            started = time.perf_counter()
            try:
                result = parts[name](folder)
            except (AssertionError, ValueError, OSError) as e:
                result, broken = f'BROKEN: {e!r}', True
            print(f'{name} ({time.perf_counter() - started:.0f} s): {result}', flush=True)
    finally:
        shutil.rmtree(folder)
    sys.exit(broken)


if __name__ == '__main__':
    main(sys.argv[1:])
