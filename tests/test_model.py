"""model.py: equal to transformers' encoder, weights in place, masks, loss, generation, files."""
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LANGUAGES, ROOT, sentences
from safetensors.torch import load_file, save_file

import model as module
from data.tokenizer import BOS, EOS, PAD, UNK
from data.batches import collate
from data.text import SENTENCEPIECE
from data.noise import mask_tokens
from data.languages import script
from data.tokenizer import Tokenizer
from model import SWCM, XLMR, Cache, ChunkedCrossEntropy, CustomDecoderLayer, SWCMConfig, top

CHOICES = [dict(), dict(insert_every=0), dict(insert_every=1, inserted='duplicate'),
           dict(inserted='quiet'), dict(share='none'), dict(share='tie'),
           dict(share='alternate', insert_every=1), dict(head='untied')]


def swcm(folder, **options):
    torch.manual_seed(1)
    return SWCM.from_encoder(folder, languages=('bo', 'zh'),
                             **{'insert_every': 3, **options}).eval()


def sources(model, lengths=(20, 13, 7, 1), seed=0):
    """Random sources with <s> <bo> ... </s>, padded: (B,S)."""
    g = torch.Generator().manual_seed(seed)
    src = torch.full((len(lengths), max(lengths) + 3), PAD)
    for row, n in zip(src, lengths):
        ids = torch.randint(4, model.config.vocab_size - 1, (n,), generator=g)
        row[:n + 3] = torch.cat([torch.tensor([BOS, model.config.vocab_size]), ids,
                                 torch.tensor([EOS])])
    return src


@pytest.mark.parametrize('layers, heads, embd, ffn, vocab',
                         [(2, 2, 32, 64, 100), (12, 12, 96, 384, 333), (3, 4, 64, 96, 250)])
@pytest.mark.parametrize('kind', ['safetensors', 'no prefix', 'bin', 'no head'])
def test_encoder_equals_transformers(tmp_path, pieces, layers, heads, embd, ffn, vocab, kind):
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM
    torch.manual_seed(layers)
    theirs = XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=vocab, hidden_size=embd, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1)).eval()
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path)
    (tmp_path / SENTENCEPIECE).write_bytes(pieces)
    state = load_file(tmp_path / 'model.safetensors')
    if kind == 'no prefix':
        state = {name.removeprefix('roberta.'): t for name, t in state.items()}
    if kind == 'no head':
        state = {name: t for name, t in state.items() if not name.startswith('lm_head')}
        state['roberta.pooler.dense.weight'] = torch.zeros(embd, embd)
    if kind == 'bin':
        (tmp_path / 'model.safetensors').unlink()
        torch.save({**state,
                    'lm_head.decoder.weight': state['roberta.embeddings.word_embeddings.weight'],
                    'roberta.embeddings.position_ids': torch.arange(66)[None]},
                   tmp_path / 'pytorch_model.bin')
    else:
        save_file(state, tmp_path / 'model.safetensors')
    ours = XLMR.from_encoder(tmp_path).eval()
    ids = torch.randint(4, vocab, (5, 40))
    for i in range(5):
        ids[i, 40 - 9 * i:] = PAD
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != PAD).long(),
                          output_hidden_states=True)
        hidden = ours.encode(ids)
        assert (hidden - expected.hidden_states[-1])[ids != PAD].abs().max() < 1e-5
        if kind != 'no head':
            assert (ours.head(hidden) - expected.logits)[ids != PAD].abs().max() < 1e-5


def test_saved_encoder_is_read_by_transformers(encoder_folder):
    from transformers import XLMRobertaForMaskedLM
    theirs = XLMRobertaForMaskedLM.from_pretrained(encoder_folder).eval()
    ours = XLMR.from_encoder(encoder_folder).eval()
    ids = torch.randint(4, ours.config.vocab_size, (2, 30))
    with torch.no_grad():
        assert (ours.head(ours.encode(ids)) - theirs(input_ids=ids).logits).abs().max() < 1e-5


def test_encoder_saved_in_half_precision(encoder_folder, tmp_path):
    XLMR.from_encoder(encoder_folder).save(tmp_path, torch.float16)
    models = XLMR.from_encoder(encoder_folder), XLMR.from_encoder(tmp_path)
    whole, half = (dict(model.named_parameters()) for model in models)
    assert {t.dtype for t in load_file(tmp_path / 'model.safetensors').values()} == {torch.float16}
    for name, p in half.items():
        # the rest are drawn anew
        rows = slice(models[0].config.vocab_size if name in module.BY_ID else None)
        assert p.dtype == torch.float32 and torch.equal(p[rows], whole[name][rows].half().float())


@pytest.mark.full
def test_nano_is_read_by_transformers_and_knows_the_languages():
    """data/nano: the folder that is shipped. Masked tokens are likelier in their order."""
    from transformers import XLMRobertaForMaskedLM
    folder = ROOT / 'data/nano'
    theirs = XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, tokenizer = XLMR.from_encoder(folder), Tokenizer(folder)
    assert {t.dtype for t in load_file(folder / 'model.safetensors').values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    for language in LANGUAGES:
        rows = [tokenizer.encode(line) for line in sentences(language)]
        assert all(UNK not in row for row in rows)
        losses = []
        for shuffled in (False, True):
            examples = []
            for i, row in enumerate(rows):
                draw = np.random.default_rng(i)
                noisy, chosen = mask_tokens(row, tokenizer.mask, 0.15, EOS + 2, draw)
                if shuffled:
                    order = draw.permutation(len(row))
                    row, noisy, chosen = row[order], noisy[order], chosen[order]
                examples.append((np.r_[BOS, noisy, EOS],
                                 np.r_[PAD, np.where(chosen, row, PAD), PAD]))
            src, tgt = map(torch.from_numpy, collate(examples))
            with torch.no_grad():
                logits = theirs(input_ids=src, attention_mask=(src != PAD).long()).logits
                assert (ours.head(ours.encode(src)) - logits)[src != PAD].abs().max() < 1e-4
                losses.append(ours.loss(src, tgt)[0])
        assert losses[0] < losses[1], language


def test_copy_is_the_encoder(encoder_folder):
    model = swcm(encoder_folder)
    custom = [layer for layer in model.decoder if isinstance(layer, CustomDecoderLayer)]
    assert [type(layer).__name__[0] for layer in model.decoder] == list('CCCNC')
    for source, layer in zip(model.encoder, custom):
        for part, theirs in (('self_attn', 'attn'), ('cross_attn', 'attn'), ('ffn1', 'ffn'),
                             ('ffn2', 'ffn')):
            pairs = zip(getattr(layer, part).parameters(), getattr(source, theirs).parameters(),
                        strict=True)
            assert all(torch.equal(a, b) and a is not b for a, b in pairs)


def test_custom_layers_without_their_second_half_are_the_encoder(encoder_folder, monkeypatch):
    model = swcm(encoder_folder, insert_every=0)
    src = sources(model)
    mask = (src != PAD)[:, None, None]
    monkeypatch.setattr(module.DecoderLayer, 'attend_self',  # sees all: not causal
                        lambda layer, x, past,
                        cache: layer.self_attn(x, *layer.self_attn.queries_keys_values(x),
                                               mask))
    for layer in model.decoder:
        monkeypatch.setattr(layer.cross_attn, 'forward', lambda x, q, k, v, mask: x)
        monkeypatch.setattr(layer.ffn2, 'forward', lambda x: x)
    with torch.no_grad():
        memory = model.encode(src)
        assert torch.equal(model.decode_hidden(src, memory, src), memory)


def test_order_in_a_custom_layer(encoder_folder):
    layer, x, memory = swcm(encoder_folder).decoder[0], torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    a, c = layer.self_attn, layer.cross_attn
    y = layer.ffn1(a(x, *a.queries_keys_values(x), causal=True))
    assert torch.equal(layer(x, memory, None),
                       layer.ffn2(c(y, c.queries(y), *c.keys_values(memory))))


def test_tie_is_one_set_of_weights(encoder_folder):
    tied = swcm(encoder_folder, share='tie', insert_every=0)
    copied = swcm(encoder_folder, insert_every=0)
    with torch.no_grad():
        tied.encoder[1].attn.query.weight[0, 0] = 7
    assert tied.decoder[1].cross_attn.query.weight[0, 0] == 7
    assert tied.decoder[1].self_attn.query.weight[0, 0] == 7
    custom = sum(p.numel() for layer in copied.decoder for p in layer.parameters())
    total = [sum(p.numel() for p in model.parameters()) for model in (tied, copied)]
    assert total[0] == total[1] - custom


def test_alternate_takes_two_encoder_layers_for_one(encoder_folder):
    model = swcm(encoder_folder, share='alternate', insert_every=0)
    assert len(model.decoder) == 2
    first, second = model.encoder[2:4]
    layer = model.decoder[1]
    assert torch.equal(layer.self_attn.key.weight, first.attn.key.weight)
    assert torch.equal(layer.ffn1.norm.weight, first.ffn.norm.weight)
    assert torch.equal(layer.cross_attn.norm.bias, second.attn.norm.bias)
    assert torch.equal(layer.ffn2.up.weight, second.ffn.up.weight)


def test_inserted_layers(encoder_folder):
    before, new = swcm(encoder_folder, inserted='duplicate').decoder[2:4]
    assert torch.equal(new.self_attn.out.weight, before.self_attn.out.weight)
    assert torch.equal(new.ffn.down.weight, before.ffn2.down.weight)
    model = swcm(encoder_folder, inserted='quiet')
    assert model.decoder[3].ffn.down.weight.abs().max() == 0
    before = model.decoder[2].ffn2.norm
    with torch.no_grad():  # as trained ones are: not 1 and 0
        before.weight.mul_(3)
        before.bias.add_(0.5)
    x, memory, error = before(torch.randn(50, 9, 32)), torch.randn(50, 5, 32), []
    for layer in (swcm(encoder_folder, inserted='random').decoder[3], model.decoder[3]):
        if layer is model.decoder[3]:
            module.quiet(layer, before)
        error.append((layer(x, memory, None) - x).square().mean() / x.var())
    assert error[0] > 0.4 and error[1] < 0.02


def test_none_shares_nothing(encoder_folder):
    model = swcm(encoder_folder, share='none')
    assert {model.origins[f'decoder.{name}']
            for name, _ in model.decoder.named_parameters()} == {'random'}
    assert not torch.equal(model.decoder[0].ffn1.up.weight, model.encoder[0].ffn.up.weight)


def test_parameters_of_the_published_layout():
    """CINO-base-v2's sizes. The published code has 492,548,543 parameters, 590,592 of a pooler.

    Ours has a LayerNorm, 2 * 768, more in each of the 3 inserted layers: 491,962,559. It also pads
    the 135,359 rows of two tables and a bias to a multiple of 64, which is not counted here.
    """
    with torch.device('meta'):
        model = SWCM(SWCMConfig(vocab_size=135359, insert_every=3, head='untied', mlm_head=False))
    ours = sum(p.numel() for p in model.parameters())
    padding = (model.config.n_rows - 135359) * (2 * 768 + 1)
    print(f'{ours - padding:,} parameters, untied, X = 3, without language rows and pooler')
    assert ours - padding == 492_548_543 - 590_592 + 3 * 2 * 768 == 491_962_559


@pytest.mark.parametrize('options', CHOICES)
def test_every_parameter_is_accounted_for(encoder_folder, options):
    model = swcm(encoder_folder, **options)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(model.origins) == names
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, origin in model.origins.items():
        how, _, where = origin.partition(' ')
        if how in ('copied', 'tied'):
            source = parameters[where.split()[-1]]
            assert torch.equal(parameters[name], source)
            assert (parameters[name] is source) == (how == 'tied')
    total = sum(p.numel() for p in model.parameters())
    assert f'{total:,}' in model.weight_report().splitlines()[-1]


@pytest.mark.parametrize('options', CHOICES)
def test_padding_batch_and_future_change_nothing(encoder_folder, options):
    model = swcm(encoder_folder, **options)
    src, tgt = sources(model), sources(model, (9, 14, 3, 11), seed=1)
    with torch.no_grad():
        together = model.decode(tgt, model.encode(src), src)
        for i in range(len(src)):
            s, t = (x[i][x[i] != PAD][None] for x in (src, tgt))
            alone = model.decode(t, model.encode(s), s)
            assert (alone[0] - together[i, :t.shape[1]]).abs().max() < 1e-4
        changed = tgt.clone()
        changed[:, 8:] = 5
        after = model.decode(changed, model.encode(src), src)
        assert torch.equal(after[:, :8], together[:, :8])
        assert not torch.allclose(after[:, 8:], together[:, 8:])


@pytest.mark.parametrize('options', CHOICES)
def test_cache_changes_nothing(encoder_folder, options):
    model, K = swcm(encoder_folder, **options), 3
    src, tgt = sources(model), sources(model, (9,) * 12, seed=1)  # 3 targets for each of 4 sources
    with torch.no_grad():
        memory = model.encode(src)
        whole = model.decode(tgt, memory.repeat_interleave(K, 0), src.repeat_interleave(K, 0))
        caches = [Cache(layer, memory, K * 12) for layer in model.decoder]
        # who wrote each slot, and when
        slots = torch.tensor([(row, t) for t in range(12) for row in range(K)])
        # (4,12*K,...)
        tgt, whole = (x.unflatten(0, (4, K)).transpose(1, 2).flatten(1, 2) for x in (tgt, whole))
        for a, b in ((0, 2 * K), *((i, i + K) for i in range(2 * K, 12 * K, K))):
            new, old = slots[a:b, None], slots[None, :b]
            past = (new[..., 0] == old[..., 0]) & (new[..., 1] >= old[..., 1])
            past = past.expand(len(src), 1, -1, -1)
            step = model.head(model.decode_hidden(tgt[:, a:b], None, src, past, caches))
            assert (step - whole[:, a:b]).abs().max() < 1e-4
            if b == 6 * K:  # two sources are done
                src, tgt, whole = (x[1:3] for x in (src, tgt, whole))
                for cache in caches:
                    cache.keep(torch.tensor([1, 2]))


@pytest.mark.parametrize('options', CHOICES)
def test_loss_is_plain_cross_entropy(encoder_folder, options, monkeypatch):
    monkeypatch.setattr(ChunkedCrossEntropy, 'CHUNK', 7)
    model = swcm(encoder_folder, **options)
    src, tgt = sources(model), sources(model, (9, 14, 3, 11), seed=1)
    loss, n = model.loss(src, tgt)
    logits = model.decode(tgt, model.encode(src), src)
    plain = F.cross_entropy(logits[:, 1:-1].flatten(0, 1), tgt[:, 2:].flatten(), ignore_index=PAD,
                            reduction='sum')
    assert n == (tgt[:, 2:] != PAD).sum() and abs(loss - plain) < 1e-5 * plain
    with torch.no_grad():
        assert model.loss(src, tgt)[0] == loss
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(3 * loss, parameters),
                            torch.autograd.grad(3 * plain, parameters)):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-6


def test_rows_behind_the_vocabulary_never_win(encoder_folder):
    model = swcm(encoder_folder)
    c = model.config
    assert c.n_rows % 64 == 0 and c.n_rows > c.n_ids == c.vocab_size + 2
    with torch.no_grad():
        model.head.bias[c.n_ids:] = 1000
    src = sources(model)
    assert model.decode(src, model.encode(src), src).shape[-1] == c.n_ids
    assert model.loss(src, src)[0] < 1e5
    written = model.generate(src, 'bo', max_new_tokens=5)
    assert max(max(h[0][0], default=0) for h in written) < c.vocab_size


def reference_greedy(model, src, lang, n):
    """One source, no cache, no batch."""
    ids, total = [BOS, model.config.language_id(lang)], 0.0
    never = [BOS, PAD, 3, *range(model.config.vocab_size - 1, model.config.n_ids)]
    for step in range(n + 1):
        logp = model.decode(torch.tensor([ids]), model.encode(src), src)[0, -1].log_softmax(-1)
        logp[never] = -torch.inf
        token = EOS if step == n else logp.argmax().item()
        total += logp[token].item()
        if token == EOS:
            break
        ids.append(token)
    return ids[2:], total / (step + 1)


@torch.no_grad()
def test_beam_1_is_greedy(encoder_folder):
    model = swcm(encoder_folder)
    model.head.bias[EOS] += 0.5  # some end early, some do not
    src = sources(model, (20, 13, 7, 1, 11, 4))
    langs, lengths = ['bo', 'zh'] * 3, set()
    for found, s, lang in zip(model.generate(src, langs, max_new_tokens=12), src, langs):
        ids, score = reference_greedy(model, s[s != PAD][None], lang, 12)
        assert found[0][0] == ids and abs(found[0][1] - score) < 1e-4
        lengths.add(len(ids))
    assert len(lengths) > 1


def test_limits_of_single_sources(encoder_folder):
    """A source has its own limit, and what the others of the batch have changes nothing."""
    model = SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'))
    src = torch.randint(4, 90, (4, 7), generator=torch.Generator().manual_seed(1))
    limits = [9, 2, 5, 9]
    src[1, 5:] = 1
    for beams in (1, 3):
        found = model.generate(src, 'bo', beams, limits)
        assert [max(len(ids) for ids, _ in hypotheses) for hypotheses in found] == limits
        for i, limit in enumerate(limits):
            [alone] = model.generate(src[i:i + 1], 'bo', beams, limit)
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
    found = tiny.generate(src, 'bo', beams=400, max_new_tokens=4, length_penalty=length_penalty)
    for s, hypotheses in zip(src, found):
        s, scored = s[s != PAD][None], []
        for n in range(5):
            for ids in itertools.product(range(4, 8), repeat=n):
                tgt = torch.tensor([[BOS, 9, *ids, EOS]])
                loss, count = tiny.loss(s, tgt)
                scored.append((-loss.item() / count.item() ** length_penalty, list(ids)))
        scored.sort(reverse=True)
        assert len(hypotheses) == len(scored)  # 1 + 4 + 16 + 64 + 256
        for (ids, score), (expected, best) in zip(hypotheses[:20], scored):
            assert abs(score - expected) < 1e-4
        assert hypotheses[0][0] == scored[0][1]


@torch.no_grad()
def test_beams_beat_greedy_and_come_in_order(encoder_folder):
    model = swcm(encoder_folder)
    model.head.bias[EOS] += 0.5
    src = sources(model, (20, 13, 7, 1, 11, 4))
    wide = model.generate(src, 'bo', beams=5, max_new_tokens=10)
    greedy = model.generate(src, 'bo', beams=1, max_new_tokens=10)
    for w, g, s in zip(wide, greedy, src):
        assert len(w) == 5 and [h[1] for h in w] == sorted((h[1] for h in w), reverse=True)
        assert len({tuple(h[0]) for h in w}) == 5
        for ids, score in w:  # the formula, by the loss
            loss, n = model.loss(s[s != PAD][None],
                                 torch.tensor([[BOS, model.config.vocab_size, *ids, EOS]]))
            assert abs(score + loss.item() / n.item()) < 1e-4
    assert sum(w[0][1] for w in wide) > sum(g[0][1] for g in greedy)


@torch.no_grad()
@pytest.mark.parametrize('options', [*CHOICES[:2], dict(share='tie')])
def test_packed_weights_write_the_same(encoder_folder, options):
    """float32 in another layout changes no text; fewer bits change the probabilities, 16 hardly."""
    plain, packed, half, int8 = (swcm(encoder_folder, **options) for _ in range(4))
    for model, bits in ((packed, 32), (half, 16), (int8, 8)):
        model.pack(bits)
    src = sources(plain, (50, 3, 12, 30))
    for beams in (1, 3):
        found = [model.generate(src, 'bo', beams, max_new_tokens=20) for model in (plain, packed)]
        for ours, theirs in zip(*found):
            assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
            assert all(abs(a - b) < 1e-5 for (_, a), (_, b) in zip(ours, theirs))
    with pytest.raises(AssertionError, match='has lost the weights'):
        packed.save('nowhere')
    tgt = sources(plain, (50, 3, 12, 30), seed=1)
    hidden = (model.decode_hidden(tgt, model.encode(src), src).flatten(0, 1)
              for model in (plain, packed, half, int8))
    exact, *others = (model.head.log_p(x) for model, x in zip((plain, packed, half, int8), hidden))
    ids = slice(plain.config.n_ids)
    torch.testing.assert_close(exact[:, ids], others[0][:, ids], rtol=0, atol=1e-4)
    error = [(logp - exact)[:, ids].abs().mean() for logp in others[1:]]
    assert error[0] < 2e-3 < error[1] < 0.05
    if 'fbgemm' in torch.backends.quantized.supported_engines:
        assert error[0] > 1e-5
    for logp in others:
        assert (logp.exp().sum(1) - 1).abs().max() < 1e-4 and logp[:, ids.stop:].isneginf().all()


def test_packing_where_there_is_no_library_for_it(encoder_folder, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    model = swcm(encoder_folder)
    model.pack(32)
    assert model.head.packed is None and isinstance(model.encoder[0].attn.query, torch.nn.Linear)


def test_top():
    x = torch.randn(5, 64 * 30, generator=torch.Generator().manual_seed(1)).round(decimals=2)
    x[0, :] = -torch.inf
    x[1, 70:] = -torch.inf
    for n in (1, 7, 29, 40):
        value, i = top(x, n)
        assert torch.equal(value, x.topk(n).values) and torch.equal(value, x.gather(1, i))
        assert all(len(row.unique()) == n for row in i)
    assert torch.equal(top(x[:, :64], 99)[0], x[:, :64].sort(descending=True).values)


@torch.no_grad()
def test_early_ends_do_not_crowd_out_the_best(tiny, monkeypatch):
    """4 (p .9), 5 (p .9), </s> (p .99) is found though two that are far worse end before it."""
    script = torch.full((9, 64), 1e-6)
    script[0, [4, EOS, 6]] = torch.tensor([0.9, 0.06, 0.03])
    script[1, [5, EOS, 6]] = torch.tensor([0.9, 0.06, 0.03])
    script[2:, EOS] = 0.99
    monkeypatch.setattr(tiny, 'decode_hidden',
                        lambda new, *rest: script[steps.pop(0)].expand(*new.shape, -1))
    monkeypatch.setattr(tiny.head, 'log_p', torch.log)
    for beams in (1, 2, 3):
        steps = list(range(9))
        [found] = tiny.generate(torch.tensor([[BOS, 9, 4, EOS]]), 'bo', beams, max_new_tokens=8)
        assert found[0][0] == [4, 5] and len(found) == beams and steps[0] < 5


@torch.no_grad()
def test_banned_scripts(encoder_folder, tokenizer):
    model = swcm(encoder_folder)
    for beams in (1, 3):
        for scripts in (['TIBETAN'], ['CJK', 'CYRILLIC']):
            found = model.generate(sources(model), 'bo', beams, max_new_tokens=20,
                                   banned=tokenizer.foreign(scripts))
            letters = {script(c) for h in found for c in tokenizer.decode(h[0][0])}
            assert letters & set(scripts) and letters <= {None, *scripts}


@torch.no_grad()
def test_limits_of_generation(encoder_folder):
    model = swcm(encoder_folder)
    src = sources(model)
    for beams in (1, 3):
        written = model.generate(src, 'zh', beams, max_new_tokens=20, no_repeat_ngram=2)
        for ids in (ids for found in written for ids, _ in found):
            bigrams = list(zip(ids, ids[1:]))
            assert len(ids) <= 20 and len(bigrams) == len(set(bigrams))
    model.head.bias[EOS] += 50
    assert all(len(f[0][0]) == 0 for f in model.generate(src, 'zh', max_new_tokens=9))
    assert all(len(f[0][0]) == 6 for f in model.generate(src, 'zh', min_new_tokens=6,
                                                         max_new_tokens=6))
    with pytest.raises(ValueError, match='min_new_tokens=9 is above max_new_tokens=8'):
        model.generate(src, 'zh', min_new_tokens=9, max_new_tokens=8)
    with pytest.raises(ValueError, match='max_new_tokens=63: this model writes at most 62'):
        model.generate(src, 'zh', max_new_tokens=63)
    with pytest.raises(ValueError,
                       match="language 'xx' has no token in this model; it knows bo zh"):
        model.generate(src, 'xx', max_new_tokens=9)
    with pytest.raises(ValueError, match='a sequence of 70 tokens; this model reads at most 64'):
        model.encode(torch.full((1, 70), 5))


@pytest.mark.parametrize('top_k, top_p', [(0, 0.7), (20, 1.0), (20, 0.7), (3, 0.99), (0, 1.0)])
def test_sampling_keeps_what_transformers_keeps(top_k, top_p, monkeypatch):
    """top_p is of what top_k has left."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logp = (3 * torch.randn(8, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    kept = []
    monkeypatch.setattr(torch.Tensor, 'multinomial',
                        lambda p, n: kept.append((p > 0).sum(1)) or p.argmax(1, True))
    module.draw(logp, 1.5, top_k, top_p)
    scores = TemperatureLogitsWarper(1.5)(None, logp)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    assert kept[0].tolist() == scores.isfinite().sum(1).tolist()


def test_sampling_from_all_of_a_large_vocabulary(monkeypatch):
    """The sum of 250,000 float32 probabilities may pass 1 before the last: top_p=1 keeps all."""
    kept = []
    monkeypatch.setattr(torch.Tensor, 'multinomial',
                        lambda p, n: kept.append((p > 0).sum()) or p.argmax(1, True))
    module.draw(torch.randn(1, 250_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1),
                1.0, 0, 1.0)
    assert kept == [250_000]


@pytest.mark.parametrize('beams', [1, 3])
def test_dead_ends_end(encoder_folder, beams):
    """Where bans leave no token, the output ends in spite of a minimum."""
    model = SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'))
    src = torch.tensor([[0, 161, 5, 6, 7, 2], [0, 161, 8, 2, 1, 1]])
    allowed = 7, 8, 9, 30
    found = model.generate(src, 'bo', beams, 30, min_new_tokens=20, no_repeat_ngram=1,
                           banned=sorted({*range(4, 160)} - {*allowed}))
    for i, hypotheses in enumerate(found):
        assert len(hypotheses) == beams
        for ids, score in hypotheses:
            assert sorted(ids) == sorted(allowed)
            tgt = torch.tensor([[0, model.config.language_id('bo'), *ids, 2]])
            logp = model.decode(tgt[:, :-1], model.encode(src[i:i + 1]),
                                src[i:i + 1]).log_softmax(-1)[0, 1:]
            assert abs(logp.gather(1, tgt[0, 2:, None]).sum().item() / 5 - score) < 1e-4


@torch.no_grad()
def test_dead_ends_of_beams_and_samples(tiny):
    """3 tokens have 9 pairs, so 10 can be written with none twice. Dead beams yield to others."""
    src = torch.tensor([[BOS, 9, 4, 5, 6, EOS], [BOS, 9, 7, EOS, PAD, PAD]])
    for wanted, n in ((8, 8), (12, 10)):
        found = tiny.generate(src, 'bo', 3, wanted, wanted, no_repeat_ngram=2, banned=[7])
        assert [{len(ids) for ids, _ in hypotheses} for hypotheses in found] == [{n}, {n}]
    for [(ids, _)] in tiny.generate(src, 'bo', 1, 8, 6, no_repeat_ngram=1, temperature=1.0):
        assert sorted(ids) == [4, 5, 6, 7]


def test_calls_that_cannot_be_answered(encoder_folder):
    model = SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'))
    src = torch.tensor([[0, 161, 5, 2]] * 2)
    assert model.generate(src[:0], 'bo') == []
    for args, message in (((src, 'bo', 0), 'beams=0: give'),
                          ((src, ['bo']), '1 languages for 2 sources'),
                          ((src[0], 'bo'), r'src has the shape \(4,\); give sources of ids'),
                          ((src, 'bo', 1, 9, 0, 1.0, 0, 0.0, 0, 1.0, [EOS]),
                           'banned has 2, </s>, without')):
        with pytest.raises(ValueError, match=message):
            model.generate(*args)
    for name, value in (('max_new_tokens', -1), ('min_new_tokens', -1), ('no_repeat_ngram', -1),
                        ('top_k', -1), ('temperature', -1.0), ('temperature', float('nan')),
                        ('top_p', 0.0)):
        with pytest.raises(ValueError, match=f'^{name}={value}: give .* or more$'):
            model.generate(src, 'bo', **{name: value})
    with pytest.raises(ValueError, match='3 max_new_tokens for 2 sources'):
        model.generate(src, 'bo', max_new_tokens=[5, 6, 7])


@pytest.mark.parametrize('beams', [1, 4])
def test_8_bits_write_the_same_in_any_batch(encoder_folder, beams):
    model = SWCM.from_encoder(encoder_folder, languages=('bo', 'zh'))
    model.pack(8)
    generator, sources = torch.Generator().manual_seed(0), []
    for n in (3, 30, 12, 21, 8, 17):
        sources.append([0, model.config.vocab_size,
                        *torch.randint(4, 150, (n,), generator=generator).tolist(), 2])
    together = model.generate(torch.from_numpy(collate([(s, s) for s in sources])[0]), 'zh', beams,
                              25)
    alone = [model.generate(torch.tensor([s]), 'zh', beams, 25)[0] for s in sources]
    assert together == alone                          # scores, too


@torch.no_grad()
def test_8_bit_attention_is_the_same_on_each_thread():
    """To the bit, alone and in a batch, where another thread may compute a source's heads."""
    torch.manual_seed(1)
    attn = module.Attention(SWCMConfig(n_embd=64, n_head=4)).eval()
    n_threads = torch.get_num_threads()
    attn.out = torch.nn.Identity()
    attn.out.bits = 8  # quantizing would hide much
    try:
        torch.set_num_threads(2)
        for n, S in ((1, 16), (2, 35), (3, 48)):
            x, q, k, v = torch.randn(3, n, 64), *(torch.randn(3, 4, t, 16) for t in (n, S, S))
            for mask in (torch.rand(3, 1, 1, S) < 0.9, torch.rand(3, 1, n, S) < 0.9):
                y = attn(x, q, k, v, mask)
                for i in range(3):
                    one = slice(i, i + 1)
                    assert torch.equal(attn(x[one], q[one], k[one], v[one], mask[one]), y[one])
                plain = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
                torch.testing.assert_close(y, attn.norm(x + plain))
    finally:
        torch.set_num_threads(n_threads)


def test_8_bits_of_a_row_owe_nothing_to_others():
    """The product of each row is the same to the bit, also beside rows a hundred times as large."""
    torch.manual_seed(0)
    linear = module.PackedLinear(torch.randn(48, 64), torch.randn(48), 8)
    x = torch.randn(4, 3, 64) * torch.tensor([1, 100, 0.01, 0]).view(4, 1, 1)
    together = linear(x)
    assert all(torch.equal(linear(x[i:i + 1, j:j + 1]), together[i:i + 1, j:j + 1])
               for i in range(4) for j in range(3))
    assert torch.equal(together[3], linear.bias.expand(3, -1))


@torch.no_grad()
def test_sampling_follows_the_model(tiny):
    src = torch.tensor([[BOS, 9, 4, 5, EOS]])
    logp = tiny.decode(torch.tensor([[BOS, 9]]), tiny.encode(src), src)[0, -1].log_softmax(-1)
    p = logp[[EOS, 4, 5, 6, 7]].softmax(-1)
    torch.manual_seed(0)
    found = tiny.generate(src.expand(4000, -1), 'bo', max_new_tokens=1, temperature=1.0)
    first = torch.tensor([ids[0] if ids else EOS for ((ids, _),) in found])
    share = torch.stack([(first == token).float().mean() for token in (EOS, 4, 5, 6, 7)])
    assert (share - p).abs().max() < 0.03
    for options, allowed in ((dict(top_k=2), p.topk(2)[1]),
                             (dict(top_p=p.max().item() - 0.01), p.topk(1)[1])):
        found = tiny.generate(src.expand(200, -1), 'bo', max_new_tokens=1, temperature=1.0,
                              **options)
        tokens = {ids[0] if ids else EOS for ((ids, _),) in found}
        assert tokens == {[EOS, 4, 5, 6, 7][i] for i in allowed}


@pytest.mark.parametrize('options', CHOICES)
def test_save_and_load(encoder_folder, tmp_path, options):
    model = swcm(encoder_folder, **options)
    model.save(tmp_path)
    with pytest.raises(ValueError, match='is a nanoSWCM model, which finetune.py takes'):
        SWCM.from_encoder(tmp_path)
    random = torch.get_rng_state()
    again = SWCM.load(tmp_path)
    # no time is lost with draws
    assert not again.training and torch.equal(torch.get_rng_state(), random)
    src = sources(model)
    assert torch.equal(model.loss(src, src)[0], again.loss(src, src)[0])
    assert again.config == model.config
    assert again.sentencepiece == model.sentencepiece
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ['config.json', 'model.safetensors', SENTENCEPIECE]


def damage(folder, how):
    weights, settings = folder / 'model.safetensors', folder / 'config.json'
    state, sizes = load_file(weights), json.loads(settings.read_text())
    if how == 'truncated':
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how in ('config.json', 'model.safetensors', SENTENCEPIECE):
        (folder / how).unlink()
    elif how == 'missing':
        del state['roberta.encoder.layer.2.output.dense.bias']
        save_file(state, weights)
    elif how == 'surplus':
        save_file({**state, 'roberta.encoder.layer.4.output.dense.bias': torch.zeros(32)}, weights)
    elif how == 'shape':
        state['roberta.embeddings.word_embeddings.weight'] = torch.zeros(100, 32)
        save_file(state, weights)
    elif how == 'gelu':
        settings.write_text(json.dumps({**sizes, 'hidden_act': 'relu'}))
    elif how == 'json':
        settings.write_text('{')
    elif how == 'no embeddings':
        del state['roberta.embeddings.word_embeddings.weight']
        save_file({**state, 'lm_head.decoder.weight': torch.zeros(9, 32)}, weights)
    elif how == 'pickle':
        weights.unlink()
        (folder / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"touch hacked"\ntR.')


@pytest.mark.parametrize('how, message', [
    ('config.json', 'config.json does not exist'),
    ('model.safetensors', 'neither model.safetensors nor pytorch_model'),
    (SENTENCEPIECE, 'sentencepiece.bpe.model does not exist'),
    ('truncated', 'model.safetensors is damaged'),
    ('missing', 'Missing: roberta.encoder.layer.2.output.dense.bias'),
    ('surplus', 'Not expected: roberta.encoder.layer.4.output.dense.bias'),
    ('shape', r'embeddings.word.weight has shape \(100, 32\), where config.json asks for'),
    ('no embeddings', 'Missing: roberta.embeddings.word_embeddings.weight'),
    ('gelu', "hidden_act is 'relu'"),
    ('json', 'config.json is not JSON'), ('pickle', 'pytorch_model.bin is damaged')])
def test_bad_encoder_folders(encoder_folder, tmp_path, how, message):
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path, how)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        SWCM.from_encoder(tmp_path)
    assert '\n' not in str(error.value)


def test_code_in_weights_is_not_run(encoder_folder, tmp_path):
    hacked = tmp_path / 'hacked'

    class Code:
        def __reduce__(self):
            return open, (str(hacked), 'w')

    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / 'model.safetensors').unlink()
    torch.save({'x': Code()}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='pytorch_model.bin is damaged or no weight file'):
        SWCM.from_encoder(tmp_path)
    assert not hacked.exists()
    torch.load(tmp_path / 'pytorch_model.bin', weights_only=False)
    assert hacked.exists()  # it would have run


def test_bad_options(encoder_folder):
    for options, message in ((dict(share='both'),
                              "share='both': choose one of copy, none, tie, alternate"),
                             (dict(insert_every=-1), 'insert_every=-1'),
                             (dict(head='x'), "head='x'")):
        with pytest.raises(ValueError, match=message):
            SWCM.from_encoder(encoder_folder, **options)
    with pytest.raises(ValueError, match='is not a nanoSWCM model but perhaps an encoder'):
        SWCM.load(encoder_folder)
    with pytest.raises(FileNotFoundError, match='the folder nowhere does not exist'):
        SWCM.load('nowhere')
    with pytest.raises(ValueError, match="languages='bo': give a value of type tuple"):
        SWCM.from_encoder(encoder_folder, languages='bo')
