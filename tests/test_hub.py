"""data/hub.py against a server on this machine that answers as the Hugging Face Hub does.

The hub itself was not tried. As there: files are at /owner/name/resolve/COMMIT/FILE, weights are
redirected to another host, and a request may begin in the middle of a file.
"""
import hashlib
import io
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import ROOT

import train
from config import Train, cli
from data import hub
from data.files import SENTENCEPIECE
from data.vocabulary import main as vocabulary
from model import XLMR

COMMIT = '0123456789abcdef'


class Server(ThreadingHTTPServer):
    """Serves `files`; notes each request as (host, path, range, has a token)."""
    def __init__(self, files):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.requests, self.statuses, self.breaks = files, [], {}, 0
        self.without_ranges = self.without_sizes = False
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, content=b'', **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        n = len(content)
        if self.server.breaks and self.path.startswith('/cdn/') and n > 1000:
            self.server.breaks, n = self.server.breaks - 1, n // 2
            self.close_connection = True
        self.wfile.write(content[:n])

    def do_GET(self):
        server, (host, port) = self.server, self.headers['Host'].split(':')
        begin = self.headers.get('Range')
        server.requests.append((host, self.path, begin, 'Authorization' in self.headers))
        for part, status in server.statuses.items():
            if part in self.path:
                return self.answer(status)
        if self.path.startswith('/api/models/'):
            siblings = []
            for name, content in server.files.items():
                found = {'rfilename': name, 'size': len(content)}
                if server.without_sizes:
                    del found['size']
                elif not name.endswith('.json'):
                    found['lfs'] = {'sha256': hashlib.sha256(content).hexdigest()}
                siblings.append(found)
            content = json.dumps({'sha': COMMIT, 'siblings': siblings}).encode()
            return self.answer(200, content)
        name = self.path.rpartition('/')[2]
        content = server.files[name]
        if '/resolve/' in self.path and name == 'config.json':  # within the hub
            return self.answer(307, Location=f'/api/resolve-cache/{name}')
        if '/resolve/' in self.path and not name.endswith('.json'):
            location = f'http://localhost:{port}/cdn/{name}'    # another host than 127.0.0.1
            return self.answer(302, Location=location, X_Linked_Size=str(len(content)))
        if begin and not server.without_ranges:
            first = int(begin.removeprefix('bytes=').rstrip('-'))
            return self.answer(206, content[first:])
        self.answer(200, content)


@pytest.fixture
def server(encoder_folder, tmp_path, monkeypatch):
    files = {file.name: file.read_bytes() for file in encoder_folder.iterdir()}
    server = Server({**files, 'README.md': b'#', 'onnx/model.onnx': b'x'})
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    monkeypatch.setattr(hub, 'CACHE', tmp_path / 'cache')
    monkeypatch.setattr(hub.time, 'sleep', lambda seconds: None)
    yield server
    server.shutdown()


def paths(server):
    return [path for _, path, *_ in server.requests]


def same_files(folder, server, names):
    return {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: server.files[name] for name in names}


NAMES = 'config.json', 'model.safetensors', SENTENCEPIECE


def test_what_an_encoder_needs_is_fetched_once(server, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'secret\r\n')
    folder = hub.CACHE / 'some/encoder'
    assert hub.fetch('some/encoder') == hub.locate('some/encoder') == str(folder)
    assert same_files(folder, server, NAMES)
    assert paths(server)[0] == '/api/models/some/encoder/revision/main?blobs=true'
    assert {has_token for host, *_, has_token in server.requests if host == '127.0.0.1'} == {True}
    redirected = [(path, token) for host, path, _, token in server.requests if host == 'localhost']
    assert {path for path, _ in redirected} == {f'/cdn/{SENTENCEPIECE}', '/cdn/model.safetensors'}
    assert not any(token for _, token in redirected)          # it stays with the hub
    n = len(server.requests)
    assert hub.fetch('some/encoder') == str(folder) and len(server.requests) == n
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert hub.fetch('some/encoder') == str(folder)
    with pytest.raises(OSError, match='HF_HUB_OFFLINE is set. By hand: put .*--encoder=FOLDER'):
        hub.fetch('some/other')
    assert len(server.requests) == n


def test_a_revision(server):
    folder = hub.fetch('some/encoder@refs/pr/1')
    assert folder == str(hub.CACHE / 'some/encoder@refs%2Fpr%2F1')
    assert paths(server)[0] == '/api/models/some/encoder/revision/refs%2Fpr%2F1?blobs=true'
    assert all(COMMIT in path for path in paths(server)[1:] if '/resolve/' in path)
    assert hub.fetch('some/encoder') != folder


def test_a_broken_transfer_is_continued(server):
    server.breaks = 2
    hub.fetch('some/encoder')
    assert same_files(hub.CACHE / 'some/encoder', server, NAMES)
    ranges = [begin for _, path, begin, _ in server.requests if path.startswith('/cdn/') and begin]
    assert len(ranges) == 2 and all(begin != 'bytes=0-' for begin in ranges)
    server.breaks = hub.TRIES + 2                             # also by the next command
    with pytest.raises(OSError, match='cannot be fetched: .*ended early.*By hand'):
        hub.fetch('some/encoder@v2')
    assert not (hub.CACHE / 'some/encoder@v2').exists()
    [part] = (hub.CACHE / 'some').glob(f'encoder@v2.{COMMIT}.tmp')
    there = (part / SENTENCEPIECE).stat().st_size
    assert 0 < there
    n = len(server.requests)
    server.breaks = 0
    hub.fetch('some/encoder@v2')
    assert same_files(hub.CACHE / 'some/encoder@v2', server, NAMES) and not part.exists()
    assert f'bytes={there}-' in [begin for _, _, begin, _ in server.requests[n:]]


def test_two_at_once_do_not_write_into_the_same_file(server, monkeypatch):
    download, others = hub.download, []

    def while_another_fetches(*args):
        if not others:
            others.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(hub.os, 'getpid', lambda: 1)
                hub.fetch('some/encoder')
        download(*args)

    monkeypatch.setattr(hub, 'download', while_another_fetches)
    hub.fetch('some/encoder')
    assert same_files(hub.CACHE / 'some/encoder', server, NAMES)
    assert [path.name for path in (hub.CACHE / 'some').iterdir()] == ['encoder']


def test_a_server_without_ranges_sends_the_whole_file(server):
    server.breaks, server.without_ranges = 1, True
    hub.fetch('some/encoder')
    assert same_files(hub.CACHE / 'some/encoder', server, NAMES)


def test_a_broken_transfer_is_noticed_where_sizes_are_not_known(server):
    server.breaks, server.without_sizes = 2, True
    hub.fetch('some/encoder')
    assert server.breaks == 0 and same_files(hub.CACHE / 'some/encoder', server, NAMES)


def test_damage_on_the_way_is_noticed(server, monkeypatch):
    download_rest = hub.download_rest

    def flip(url, path, size):
        download_rest(url, path, size)
        if path.name == 'model.safetensors':
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(hub, 'download_rest', flip)
        with pytest.raises(ValueError, match='model.safetensors arrived damaged'):
            hub.fetch('some/encoder')
    assert not (hub.CACHE / 'some/encoder').exists()
    hub.fetch('some/encoder')                                 # the rest is not fetched again
    assert same_files(hub.CACHE / 'some/encoder', server, NAMES)
    assert paths(server).count(f'/cdn/{SENTENCEPIECE}') == 1


@pytest.mark.parametrize('names', [
    ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'),
    ('pytorch_model.bin',)])
def test_other_weights(server, names):
    content = server.files.pop('model.safetensors')
    server.files.update({name: content + name.encode() for name in names})
    server.files['model.safetensors.index.json'] = b'{}'
    assert same_files(hub.CACHE.parent / hub.fetch('a/b'), server,
                      (*names, 'config.json', SENTENCEPIECE))


@pytest.mark.parametrize('status, why', [
    (401, 'there is no such model, or it is private: set HF_TOKEN'),
    (403, 'it is gated: accept its terms there, and set HF_TOKEN'),
    (404, 'there is no such model or revision'), (503, 'HTTP Error 503')])
def test_refusals_get_one_line(server, status, why):
    for part in '/api/', '/resolve/', '/cdn/':                # a gated model is listed
        server.statuses = {part: status}
        message = f'some/encoder is not a folder here, .*{why}.*By hand'
        with pytest.raises(OSError, match=message) as error:
            hub.fetch('some/encoder')
        assert '\n' not in str(error.value)
        assert not (hub.CACHE / 'some/encoder').exists()
    tries = [path for path in paths(server) if '/cdn/' in path]
    assert len(tries) == (hub.TRIES if status > 500 else 1), tries


def test_no_network(server, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')   # nothing listens there
    with pytest.raises(OSError, match='some/encoder is not a folder here, .*refused.*By hand'):
        hub.fetch('some/encoder')


def test_an_answer_that_is_not_a_hubs(server, monkeypatch):
    monkeypatch.setattr(hub, 'request', lambda *args: io.BytesIO(b'<html>log in</html>'))
    with pytest.raises(OSError, match='some/encoder is not .* does not answer as the hub.*By hand'):
        hub.fetch('some/encoder')
    monkeypatch.setattr(hub, 'request', lambda *args: io.BytesIO(b'{}'))
    with pytest.raises(OSError, match='some/encoder is not a folder here, .*does not answer'):
        hub.fetch('some/encoder')


@pytest.mark.parametrize('name', ['config.json', SENTENCEPIECE, 'model.safetensors'])
def test_a_model_that_is_no_encoder(server, name):
    del server.files[name]
    with pytest.raises(ValueError, match="some/encoder lacks .* only encoders with XLM-R's kind"):
        hub.fetch('some/encoder')
    assert not (hub.CACHE / 'some/encoder').exists()


def test_a_full_disk(server, monkeypatch):
    tries = []

    def full(url, path, size):
        tries.append(url)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(hub, 'download_rest', full)
    monkeypatch.setattr(hub.time, 'sleep', lambda seconds: None)
    with pytest.raises(OSError, match='some/encoder is not .* No space left on device.*By hand'):
        hub.fetch('some/encoder')
    assert len(tries) == hub.TRIES and not (hub.CACHE / 'some/encoder').exists()


@pytest.mark.parametrize('name', ['../../etc', 'a/..', '../a', 'a/../../b', '/etc/x', 'a', 'a/b/c',
                                  'a/b@', 'a/b@../x', '.a/b', 'a/b?x'])
def test_names_stay_in_the_cache(server, name):
    """What is no name on the hub is a folder's, which does not exist here."""
    assert hub.fetch(name) == hub.locate(name) == name and not server.requests


def test_a_revision_stays_in_the_cache(server):
    folder = hub.CACHE / 'a' / 'b@x%2F..%2F..%2F..%2Fy'
    assert hub.locate('a/b@x/../../../y') == str(folder)


def test_folders_come_first(server, tmp_path, monkeypatch):
    (tmp_path / 'some/encoder').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.fetch('some/encoder') == 'some/encoder'
    assert hub.fetch('data/nano') == str(ROOT / 'data/nano') and not server.requests
    for folder in 'data/nanoo', 'out/extended':               # mistyped, or not yet written
        assert hub.fetch(folder) == folder and not server.requests
    assert hub.fetch(str(hub.CACHE / 'gone/encoder')) == str(hub.CACHE / 'gone/encoder')


def test_train_and_vocabulary_by_name(server, tmp_path):
    options = ['--encoder=some/encoder', f'--out_dir={tmp_path}/out', '--batch_tokens=300',
               '--block_size=60', '--eval_segments=2', '--save_interval=1', '--device=cpu']
    train.train(cli.load(Train, [*options, '--max_steps=1']))
    assert json.loads((tmp_path / 'out/best/run.json').read_text())['encoder'] == 'some/encoder'
    shutil.rmtree(hub.CACHE)
    n = len(server.requests)
    train.train(cli.load(Train, [*options, '--max_steps=2']))
    assert len(server.requests) == n                          # a run that resumes does not need it
    text = tmp_path / 'bo.txt'
    text.write_text('ང་ལ་དེབ་ཡོད།\n' * 3, encoding='utf-8')
    vocabulary(['trim', '--encoder', 'some/encoder', '--text', str(text), '--out',
                str(tmp_path / 'trimmed')])
    whole, trimmed = (XLMR.from_encoder(folder).config.vocab_size
                      for folder in (hub.CACHE / 'some/encoder', tmp_path / 'trimmed'))
    assert trimmed < whole
