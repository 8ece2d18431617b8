"""Encoders by their name on the Hugging Face Hub: owner/name, or owner/name@revision.

Each is fetched once, into data/encoders/. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they
mean to huggingface_hub.
"""
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from config import cli
from data.files import SENTENCEPIECE

CACHE = Path(__file__).parent / 'encoders'
NAME = re.compile(r'(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w./-]*))?', re.ASCII)
WEIGHTS = r'model\.safetensors', r'model-\d+-of-\d+\.safetensors', r'pytorch_model\.bin'
TRIES, SECONDS = 5, 30                # of a transfer; without an answer, before one is given up
BROKEN = HTTPException, OSError       # what a request or a transfer may raise
REFUSED = {401: 'there is no such model, or it is private: set HF_TOKEN',
           403: 'it is gated: accept its terms there, and set HF_TOKEN',
           404: 'there is no such model or revision'}


def locate(encoder):
    """The folder of an encoder: itself, in the repository, or where `fetch` puts a name."""
    folder, match = cli.find(encoder), NAME.fullmatch(encoder)
    if Path(folder).exists() or not match or Path(cli.find(match[1])).is_dir() or match[1] == 'out':
        return folder
    owner, name, revision = match.groups()
    return str(CACHE / owner / name) + (f'@{quote(revision, "")}' if revision else '')


def fetch(encoder):
    """The folder of an encoder, fetched from the hub if it is the name of one and not a folder.

    A broken transfer is continued the next time. Raises OSError, with what to do by hand, and
    ValueError for a model without the files of an encoder or with damaged ones."""
    folder, match = Path(locate(encoder)), NAME.fullmatch(encoder)
    if folder.exists() or not match or not folder.is_relative_to(CACHE):
        return str(folder)
    name, revision = f'{match[1]}/{match[2]}', match[3] or 'main'
    hub = (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')
    by_hand = (f'By hand: put {SENTENCEPIECE}, config.json and model.safetensors (or '
               f'pytorch_model.bin) of {hub}/{name} into a folder, and give --encoder=FOLDER')
    if os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on'):
        raise OSError(f'{encoder} is not a folder here, and HF_HUB_OFFLINE is set. {by_hand}')
    try:
        commit, files = list_files(f'{hub}/api/models/{name}/revision/{quote(revision, "")}')
        files = [(f'{hub}/{name}/resolve/{commit}/{file["rfilename"]}', file)
                 for file in files_of_encoder(files, encoder)]
        fetch_files(files, folder, commit)
    except BROKEN as e:
        why = REFUSED.get(getattr(e, 'code', None), e)
        raise OSError(f'{encoder} is not a folder here, and cannot be fetched: {why}. '
                      f'{by_hand}') from e
    return str(folder)


def list_files(url):
    """The commit of a model, and its files [{'rfilename': ..., 'size': ..., 'lfs': ...}, ...]."""
    with request(f'{url}?blobs=true') as response:
        try:
            model = json.load(response)
            return model['sha'], [file for file in model['siblings'] if file['rfilename']]
        except (ValueError, TypeError, KeyError) as e:
            raise ConnectionError(f'{url} does not answer as the hub does') from e


def files_of_encoder(files, encoder):
    """Those of a model's files that an encoder needs."""
    for pattern in WEIGHTS:
        weights = [file for file in files if re.fullmatch(pattern, file['rfilename'])]
        if weights:
            break
    others = [file for file in files if file['rfilename'] in ('config.json', SENTENCEPIECE)]
    if len(others) < 2 or not weights:
        raise ValueError(f'{encoder} lacks config.json, weights or {SENTENCEPIECE}: only encoders '
                         "with XLM-R's kind of vocabulary are read")
    return others + weights


def fetch_files(files, folder, commit):
    """Fetches files [(url, file)] to a folder, which appears when all are there."""
    left = folder.with_name(f'{folder.name}.{commit}.tmp')        # by a transfer that broke off
    part = left.with_suffix(f'.{os.getpid()}.tmp')                # no other process writes there
    part.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        left.rename(part)
    try:
        part.mkdir(exist_ok=True)
        for url, file in files:
            sha256 = (file.get('lfs') or {}).get('sha256')
            download(url, part / file['rfilename'], file.get('size'), sha256)
        if not folder.exists():
            part.rename(folder)
    finally:
        with suppress(OSError):
            shutil.rmtree(part) if folder.exists() else part.rename(left)


class SameHost(HTTPRedirectHandler):
    """The token is not sent on to another host."""
    def redirect_request(self, request, *args):
        new = super().redirect_request(request, *args)
        if new and urlsplit(new.full_url)[:2] != urlsplit(request.full_url)[:2]:
            new.remove_header('Authorization')
        return new


def request(url, first=0):
    """Opens a URL, from byte `first` on. Raises one of BROKEN."""
    asked = Request(url, headers={'Range': f'bytes={first}-'} if first else {})
    if token := os.environ.get('HF_TOKEN', '').strip():
        asked.add_header('Authorization', f'Bearer {token}')
    return build_opener(SameHost).open(asked, timeout=SECONDS)


def download(url, path, size, sha256):
    """Fetches a file, or the rest of one; checks its size and hash where they are known."""
    for tries_left in reversed(range(TRIES)):
        try:
            download_rest(url, path, size)
            break
        except BROKEN as e:
            if not tries_left or isinstance(e, HTTPError) and e.code < 500:
                raise
            time.sleep(1)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 not in (None, found) or size not in (None, path.stat().st_size):
        path.unlink()
        raise ValueError(f'{url} arrived damaged (wrong size or SHA-256); run it again')


def download_rest(url, path, size):
    """Adds to a file what it lacks, or all if it is longer than `size` or that is not known."""
    there = path.stat().st_size if path.exists() else 0
    if there == size:
        return
    there = there if size and there < size else 0
    with request(url, there) as response:
        there = there if response.status == 206 else 0          # else it sends the whole file
        with open(path, 'ab' if there else 'wb') as file, tqdm(
                total=size, initial=there, unit='B', unit_scale=True, desc=path.name) as bar:
            while block := response.read(2**16):
                file.write(block)
                bar.update(len(block))
    if response.length or size and path.stat().st_size < size:
        raise ConnectionError(f'{url} ended early')
