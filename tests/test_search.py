"""sample.search and config/cpu.py: the cache changes nothing, beams find the best, fewer bits."""
import itertools

import pytest
import torch
from conftest import CHOICES, make_model, make_sources

from config import cuda
from config.cpu import pack
from data.languages import ids_outside_scripts, script
from data.tokenizer import BOS, EOS, PAD
from model import LAYERS, SWCM, Head, Layer, SWCMConfig
from sample import KVCache, keep_sampled, search, topk


def run(model, src, language='bo', limit=20, **options):
    """`search` with one language and limit for all sources."""
    return search(model, src, [language] * len(src), [limit] * len(src), **options)


@torch.no_grad()
@pytest.mark.parametrize('options', CHOICES)
def test_cache_changes_nothing(encoder_folder, options):
    """When texts go on from others and sources end, states are those of whole texts."""
    model, K, g = make_model(encoder_folder, **options), 3, torch.Generator().manual_seed(0)
    src = make_sources(model)
    new, memory = src[:, :2], model.encoder.encode(src)
    texts, cache = new[:, None], KVCache(len(src), 2 + 9 * K, 'cpu')    # (B,rows,T)
    for step in range(10):
        rows = texts.shape[1]
        x = model.states(new, memory, src, cache)[:, -rows:].flatten(0, 1)
        whole = model.states(texts.flatten(0, 1), memory.repeat_interleave(rows, 0),
                             src.repeat_interleave(rows, 0))
        assert (x - whole[:, -1]).abs().max() < 1e-4
        left = torch.tensor([1, 2]) if step == 5 else torch.arange(len(src))
        row = torch.randint(rows, (len(left), K), generator=g)
        new = torch.randint(4, model.config.vocab_size - 1, (len(left), K), generator=g)
        texts = torch.cat([texts[left[:, None], row], new[:, :, None]], 2)
        src, memory = src[left], memory[left]
        cache.keep(left)
        cache.extend(row)


def test_what_is_16_bits_wide_in_mixed_precision(encoder_folder):
    """Keys, values, logits are; weights, gradients, states between layers and the loss are not."""
    model = make_model(encoder_folder)
    src, cache = make_sources(model), KVCache(4, 9, 'cpu')
    with torch.autocast('cpu', torch.bfloat16):
        loss, _ = model.loss(src, src)
        x = model.states(src[:, :2], model.encoder.encode(src), src, cache)
        logits = model.encoder.head(x)
    loss.backward()
    for pairs in (*cache.memory.values(), *cache.generated.values()):
        assert [t.dtype for t in pairs] == [torch.bfloat16] * 2
    assert logits.dtype == torch.bfloat16 and loss.dtype == x.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_one_beam_is_the_naive_search(encoder_folder):
    """Greedy search writes what model.generate does, and its score is that of the loss."""
    model = make_model(encoder_folder, insert_every=3)
    model.encoder.head.bias[EOS] += 0.5               # some end early, some do not
    src, lengths = make_sources(model, (20, 13, 7, 1, 11, 4)), set()
    for language in ('bo', 'zh'):
        naive = model.generate(src, language, max_new_tokens=12)
        for s, expected, [(ids, score)] in zip(src, naive, run(model, src, language, 12)):
            assert ids == expected
            tgt = torch.tensor([[BOS, model.config.language_id(language), *ids, EOS]])
            loss, n = model.loss(s[s != PAD][None], tgt)
            assert abs(score + loss.item() / n) < 1e-4
            lengths.add(len(ids))
    assert len(lengths) > 1


def test_limits_of_single_sources(encoder_folder):
    """A source has its own limit, and what the others of the batch have changes nothing."""
    model = SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'))
    src = torch.randint(4, 90, (4, 7), generator=torch.Generator().manual_seed(1))
    limits, languages = [9, 2, 5, 9], ['bo', 'zh', 'bo', 'zh']
    src[1, 5:] = PAD
    for beams in (1, 3):
        found = search(model, src, languages, limits, beams=beams)
        assert [max(len(ids) for ids, _ in texts) for texts in found] == limits
        for i, limit in enumerate(limits):
            [alone] = search(model, src[i:i + 1], [languages[i]], [limit], beams=beams)
            assert [ids for ids, _ in alone] == [ids for ids, _ in found[i]]


@pytest.fixture
def tiny(pieces):
    """A model of 4 pieces that can be written, so that all its outputs can be listed."""
    torch.manual_seed(3)
    model = SWCM(SWCMConfig(vocab_size=9, n_layer=2, n_head=2, n_embd=16, n_ffn=32, n_positions=20,
                            insert_every=1, languages=('bo',), dropout=0)).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


@torch.no_grad()
@pytest.mark.parametrize('length_penalty', [1.0, pytest.param(0.0, marks=pytest.mark.full),
                                            pytest.param(2.0, marks=pytest.mark.full)])
def test_beam_search_finds_the_best_of_all(tiny, length_penalty):
    src = torch.tensor([[BOS, 9, 4, 5, 6, EOS], [BOS, 9, 7, EOS, PAD, PAD]])
    found = run(tiny, src, limit=4, beams=400, length_penalty=length_penalty)
    for s, texts in zip(src, found):
        s, scored = s[s != PAD][None], []
        for n in range(5):
            for ids in itertools.product(range(4, 8), repeat=n):
                tgt = torch.tensor([[BOS, 9, *ids, EOS]])
                loss, count = tiny.loss(s, tgt)
                scored.append((-loss.item() / count ** length_penalty, list(ids)))
        scored.sort(reverse=True)
        assert len(texts) == len(scored)  # 1 + 4 + 16 + 64 + 256
        for (ids, score), (expected, best) in zip(texts[:20], scored):
            assert abs(score - expected) < 1e-4
        assert texts[0][0] == scored[0][1]


@torch.no_grad()
def test_beams_beat_greedy_and_come_in_order(encoder_folder):
    model = make_model(encoder_folder, insert_every=3)
    model.encoder.head.bias[EOS] += 0.5
    src = make_sources(model, (20, 13, 7, 1, 11, 4))
    wide, greedy = (run(model, src, limit=10, beams=beams) for beams in (5, 1))
    for texts, s in zip(wide, src):
        scores = [score for _, score in texts]
        assert len(texts) == 5 and scores == sorted(scores, reverse=True)
        assert len({tuple(ids) for ids, _ in texts}) == 5
        for ids, score in texts:                      # the formula, by the loss
            loss, n = model.loss(s[s != PAD][None],
                                 torch.tensor([[BOS, model.config.vocab_size, *ids, EOS]]))
            assert abs(score + loss.item() / n) < 1e-4
    assert sum(texts[0][1] for texts in wide) > sum(texts[0][1] for texts in greedy)


@torch.no_grad()
def test_early_ends_do_not_crowd_out_the_best(tiny, monkeypatch):
    """4 (p .9), 5 (p .9), </s> (p .99) is found though two that are far worse end before it."""
    steps, p = [], torch.full((9, 64), 1e-6)
    p[0, [4, EOS, 6]] = torch.tensor([0.9, 0.06, 0.03])
    p[1, [5, EOS, 6]] = torch.tensor([0.9, 0.06, 0.03])
    p[2:, EOS] = 0.99
    monkeypatch.setattr(tiny, 'states',
                        lambda new, *rest: p[steps.pop(0)].expand(*new.shape, -1))
    monkeypatch.setattr(tiny.encoder.head, 'forward', torch.log)
    for beams in (1, 2, 3):
        steps[:] = range(9)
        [found] = run(tiny, torch.tensor([[BOS, 9, 4, EOS]]), limit=8, beams=beams)
        assert found[0][0] == [4, 5] and len(found) == beams and steps[0] < 5


class Recorded:
    """As a CUDA graph on a CPU: each time the same step, from and to the same tensors."""
    def __init__(self, step, cache, texts, pool):
        self.step, self.states, self.n_used = step, (cache, texts), cache.n_used
        self.tensors = [{k: x for k, x in vars(state).items() if isinstance(x, torch.Tensor)}
                        for state in self.states]

    def replay(self):
        for state, tensors in zip(self.states, self.tensors):
            assert all(getattr(state, name) is x for name, x in tensors.items())
        self.states[0].n_used = self.n_used
        self.step()
        for state, tensors in zip(self.states, self.tensors):
            for name, x in tensors.items():
                setattr(state, name, x.copy_(getattr(state, name)))


@pytest.mark.parametrize('options', [dict(), dict(beams=3), dict(beams=5, no_repeat_ngram=2)])
def test_steps_can_be_replayed(encoder_folder, monkeypatch, options):
    """What search does on a GPU, but for the GPU."""
    model = make_model(encoder_folder, insert_every=3)
    model.encoder.head.bias.data[EOS] += 0.5
    src, limits, graphs = make_sources(model, (20, 13, 7, 1, 11, 4)), [30, 2, 30, 9, 0, 30], []
    languages = ['bo', 'zh'] * 3
    expected = search(model, src, languages, limits, **options)
    monkeypatch.setattr(cuda, 'record', lambda *a: graphs.append(Recorded(*a)) or graphs[-1])
    monkeypatch.setattr(cuda, 'ENABLED', True)
    monkeypatch.setattr(cuda, 'BUCKET', 8)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: None)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    found = search(model, src, languages, limits, **options)
    assert len(graphs) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
        assert [s for _, s in ours] == pytest.approx([s for _, s in theirs], abs=1e-4)


class Twice(Layer):
    SOURCES = {'self_attn1': ('attn', 0), 'self_attn2': ('attn', 0), 'cross_attn1': ('attn', 1),
               'cross_attn2': ('attn', 1), 'ffn': ('ffn', 1)}

    def forward(self, x, memory, mask, cache=None):
        x = self.self_attn2(self.self_attn1(x, causal=True, cache=cache), causal=True, cache=cache)
        for attn in self.cross_attn1, self.cross_attn2:
            x = attn(x, memory, mask, cache=cache)
        return self.ffn(x)


@pytest.mark.parametrize('share', ['copy', 'tie'])
def test_a_layer_may_use_a_tied_module_twice(encoder_folder, monkeypatch, share):
    monkeypatch.setitem(LAYERS, 'twice', Twice)
    model = make_model(encoder_folder, layer='twice', share=share)
    src = make_sources(model)
    expected = model.generate(src, 'bo', 20)
    assert len({tuple(ids) for ids in expected}) > 1
    assert [ids for [(ids, _)] in run(model, src)] == expected


@torch.no_grad()
def test_banned_scripts(encoder_folder, tokenizer):
    model = make_model(encoder_folder, insert_every=3)
    for beams in (1, 3):
        for scripts in (['TIBETAN'], ['CJK', 'CYRILLIC']):
            found = run(model, make_sources(model), beams=beams,
                        banned=ids_outside_scripts(tokenizer, scripts))
            letters = {script(c) for texts in found for c in tokenizer.decode(texts[0][0])}
            assert letters & set(scripts) and letters <= {None, *scripts}


@torch.no_grad()
def test_limits_of_search(encoder_folder):
    model = make_model(encoder_folder, insert_every=3)
    src = make_sources(model)
    for beams in (1, 3):
        written = run(model, src, 'zh', beams=beams, no_repeat_ngram=2)
        for ids in (ids for texts in written for ids, _ in texts):
            bigrams = list(zip(ids, ids[1:]))
            assert len(ids) <= 20 and len(bigrams) == len(set(bigrams))
    model.encoder.head.bias[EOS] += 50
    assert all(texts[0][0] == [] for texts in run(model, src, 'zh', 9))
    with pytest.raises(ValueError, match="language 'xx': the model has bo zh"):
        run(model, src, 'xx')


@torch.no_grad()
@pytest.mark.parametrize('options', [dict(beams=1), dict(beams=3), dict(temperature=1.0)])
def test_dead_ends_end(encoder_folder, options):
    """Where bans leave no other token, </s> comes, however unlikely."""
    model = make_model(encoder_folder)
    model.encoder.head.bias[EOS] -= 50
    src = torch.tensor([[0, 161, 5, 6, 7, 2], [0, 161, 8, 2, 1, 1]])
    allowed = [7, 8, 9, 30]
    found = run(model, src, limit=30, no_repeat_ngram=1,
                banned=sorted({*range(4, model.config.vocab_size)} - {*allowed}), **options)
    for s, texts in zip(src, found):
        assert len(texts) == options.get('beams', 1)
        for ids, score in texts:
            assert sorted(ids) == allowed
            tgt = torch.tensor([[0, model.config.language_id('bo'), *ids, 2]])
            loss, n = model.loss(s[s != PAD][None], tgt)
            assert abs(score + loss.item() / n) < 1e-4


def test_topk():
    x = torch.randn(5, 64 * 30, generator=torch.Generator().manual_seed(1)).round(decimals=2)
    x[0, :] = -torch.inf
    x[1, 70:] = -torch.inf
    for n in (1, 7, 29, 40):
        value, i = topk(x, n)
        assert torch.equal(value, x.topk(n).values) and torch.equal(value, x.gather(1, i))
        assert all(len(row.unique()) == n for row in i)
    assert torch.equal(topk(x[:, :64], 99)[0], x[:, :64].sort(descending=True).values)


WRITTEN = EOS, 4, 5, 6, 7


@torch.no_grad()
def test_sampling_follows_the_model(tiny):
    """That of `search` and that of model.generate."""
    src = torch.tensor([[BOS, 9, 4, 5, EOS]])
    states = tiny.states(torch.tensor([[BOS, 9]]), tiny.encoder.encode(src), src)
    p = tiny.encoder.head(states)[0, -1, WRITTEN].softmax(-1)
    many, few = src.expand(4000, -1), src.expand(200, -1)
    torch.manual_seed(0)
    for texts in (tiny.generate(many, 'bo', 1, temperature=1.0),
                  [ids for [(ids, _)] in run(tiny, many, limit=1, temperature=1.0)]):
        first = torch.tensor([ids[0] if ids else EOS for ids in texts])
        fraction = torch.stack([(first == token).float().mean() for token in WRITTEN])
        assert (fraction - p).abs().max() < 0.03
    found = run(tiny, few, limit=1, temperature=1.0, top_k=2)
    assert {ids[0] if ids else EOS for [(ids, _)] in found} == {WRITTEN[i] for i in p.topk(2)[1]}


@pytest.mark.parametrize('top_k', [20, 3, 0])
def test_sampling_keeps_what_transformers_keeps(top_k, monkeypatch):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper

    logp = (3 * torch.randn(8, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    kept = []
    monkeypatch.setattr(torch.Tensor, 'multinomial',
                        lambda p, n: kept.append(p) or p.argmax(1, True))
    keep_sampled(logp, 1.5, top_k)
    scores = TemperatureLogitsWarper(1.5)(None, logp)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    expected = scores.softmax(-1).sort(-1, descending=True)[0][:, :top_k or 50]
    assert torch.allclose(kept[0] / kept[0].sum(-1, keepdim=True), expected)


def logp_with_cache(model, tgt, src):
    """Log p (B*T,V) after each of the tokens tgt (B,T); packed models need a cache."""
    n = tgt.shape[1]
    cache = KVCache(len(src), n, 'cpu')
    cache.at, cache.n_used = torch.arange(n), n
    cache.past = torch.ones(len(src), n, n, dtype=torch.bool).tril()
    states = model.states(tgt, model.encoder.encode(src), src, cache)
    return model.encoder.head(states.flatten(0, 1)).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize('options', [*CHOICES[:2], dict(share='tie')])
def test_packed_weights_write_nearly_the_same(encoder_folder, options):
    """16-bit weights hardly change a probability; nothing is written that plain ones never do."""
    plain, packed = (make_model(encoder_folder, **options) for _ in range(2))
    pack(packed)
    src = make_sources(plain, (50, 3, 12, 30))
    for beams in (1, 3):
        assert all(run(packed, src, beams=beams))
    tgt = make_sources(plain, (50, 3, 12, 30), seed=1)
    exact, logp = (logp_with_cache(model, tgt, src) for model in (plain, packed))
    ids = slice(plain.config.n_ids)
    error = (logp - exact)[:, ids].abs().mean()
    assert error < 2e-3
    if 'fbgemm' in torch.backends.quantized.supported_engines:
        assert error > 1e-5
    assert (logp.exp().sum(1) - 1).abs().max() < 1e-4 and logp[:, ids.stop:].isneginf().all()


def test_packing_leaves_nothing_out(encoder_folder):
    """With share='tie' a module is a part of two layers."""
    model = make_model(encoder_folder, share='tie')
    pack(model)
    kinds = {type(m).__name__ for m in model.modules()}
    assert 'Linear' not in kinds and 'PackedLinear' in kinds
    for ours, theirs in zip(model.decoder, model.encoder.layers):
        assert ours.ffn1 is theirs.ffn and ours.self_attn is ours.cross_attn is theirs.attn


def test_packing_where_there_is_no_library_for_it(encoder_folder, monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), 'supported_engines', ['qnnpack'])
    model = make_model(encoder_folder)
    pack(model)
    assert type(model.encoder.head) is Head
    assert type(model.encoder.layers[0].attn.query) is torch.nn.Linear
