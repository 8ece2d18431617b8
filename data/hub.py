"""Encoders by their name on the Hugging Face Hub: owner/name, or owner/name@revision.

Each is fetched once, into data/encoders/. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they
mean to huggingface_hub.
"""
import hashlib
import json
import os
import re
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tqdm import tqdm

from config import cli
from data.files import SENTENCEPIECE

CACHE = Path(__file__).parent / 'encoders'
NAME = re.compile(r'(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?', re.ASCII)
WEIGHTS = r'model\.safetensors', r'model-\d+-of-\d+\.safetensors', r'pytorch_model\.bin'
TRIES, SECONDS = 5, 30                            # of a transfer; until a silent server is given up
NETWORK = URLError, HTTPException, ConnectionError, TimeoutError


def locate(encoder):
    """The folder of an encoder: itself, in the repository, or where `fetch` puts a name."""
    folder, match = cli.find(encoder), NAME.fullmatch(encoder)
    if Path(folder).exists() or not match:
        return folder
    name, revision = match.groups()
    return str(CACHE / name) + (f'@{quote(revision, "")}' if revision else '')


def fetch(encoder):
    """The folder of an encoder, fetched from the hub if it is the name of one and no folder.

    What a broken transfer leaves is continued next time. Raises OSError, with what to do by hand,
    and ValueError for a model without the files of an encoder or with damaged ones."""
    folder = Path(locate(encoder))
    if folder.exists() or not folder.is_relative_to(CACHE):
        return str(folder)
    name, revision = NAME.fullmatch(encoder).groups('main')
    hub = os.environ.get('HF_ENDPOINT', 'https://huggingface.co')
    by_hand = (f'By hand: put {SENTENCEPIECE}, config.json and model.safetensors (or '
               f'pytorch_model.bin) of {hub}/{name} into a folder, and give --encoder=FOLDER')
    if os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on'):
        raise OSError(f'{encoder} is no folder, and HF_HUB_OFFLINE is set. {by_hand}')
    try:
        with request(f'{hub}/api/models/{name}/revision/{quote(revision, "")}?blobs=true') as found:
            model = json.load(found)
        part = folder.with_name(f'{folder.name}.{model["sha"]}.tmp')
        part.mkdir(parents=True, exist_ok=True)
        for file in files_of_encoder(model['siblings'], encoder):
            url = f'{hub}/{name}/resolve/{model["sha"]}/{file["rfilename"]}'
            sha256 = (file.get('lfs') or {}).get('sha256')
            download(url, part / file['rfilename'], file.get('size'), sha256)
        part.rename(folder)
    except (*NETWORK, json.JSONDecodeError, KeyError) as e:
        why = {401: 'there is no such model, or it is private: set HF_TOKEN',
               403: 'it is gated: accept its terms there, and set HF_TOKEN',
               404: 'there is no such model or revision'}.get(getattr(e, 'code', None), repr(e))
        raise OSError(f'{encoder} is no folder, and cannot be fetched: {why}. {by_hand}') from e
    except OSError as e:
        raise OSError(f'{folder} cannot be written: {e.strerror}. The same command continues, once '
                      'there is space') from e
    return str(folder)


def files_of_encoder(files, encoder):
    """Those of a model's files [{'rfilename': name, ...}] that an encoder needs."""
    for pattern in WEIGHTS:
        weights = [file for file in files if re.fullmatch(pattern, file['rfilename'])]
        if weights:
            break
    others = [file for file in files if file['rfilename'] in ('config.json', SENTENCEPIECE)]
    if len(others) < 2 or not weights:
        raise ValueError(f'{encoder} lacks config.json, weights or {SENTENCEPIECE}: only encoders '
                         "with XLM-R's kind of vocabulary are read")
    return others + weights


def request(url, first=0):
    """Opens a URL, from byte `first` on. The token is not sent on to where it is redirected."""
    asked = Request(url, headers={'Range': f'bytes={first}-'} if first else {})
    if token := os.environ.get('HF_TOKEN'):
        asked.add_unredirected_header('Authorization', f'Bearer {token}')
    return urlopen(asked, timeout=SECONDS)


def download(url, path, size, sha256):
    """Fetches a file, or the rest of one; checks its size and hash where they are known."""
    for tries_left in reversed(range(TRIES)):
        try:
            download_rest(url, path, size)
            break
        except NETWORK as e:
            if not tries_left or isinstance(e, HTTPError) and e.code < 500:
                raise
            time.sleep(1)
    with open(path, 'rb') as file:
        hashed = hashlib.sha256()
        while block := file.read(2**20):
            hashed.update(block)
    if sha256 not in (None, hashed.hexdigest()) or size not in (None, path.stat().st_size):
        path.unlink()
        raise ValueError(f'{url} did not arrive as it is there; the same command tries again')


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
    if size and path.stat().st_size < size:
        raise ConnectionError(f'{url} ended early')
