# An encoder learns, by masked LM, the pieces that data/vocabulary.py has added:
#     python train.py config/vocabulary/new_script.py --data_from=MY_TEXT --languages=bo,zh
objective = 'mlm'
dataset = 'text'
encoder = 'out/extended'         # what `python -m data.vocabulary extend --out` wrote
languages = ('bo', 'zh')         # the new one, and the ones to translate from
out_dir = 'out/encoder'
batch_tokens = 8192              # four per step: 16,000 tokens of text, and as many labels
accumulate = 4
max_steps = 20000
lr = 1e-4
eval_interval = 1000
save_interval = 500
