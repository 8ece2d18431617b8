# An encoder learns the pieces that data/vocabulary.py has added to its vocabulary, by masked tokens:
#     python train.py config/new_script.py --data_from=MY_TEXT --languages=bo,zh
objective = 'mlm'
dataset = 'text'
encoder = 'out/extended'         # what `python -m data.vocabulary extend --out` wrote
languages = ('bo', 'zh')         # the new one, and those that it is to translate from
out_dir = 'out/encoder'
batch_tokens = 8192              # four of these a step: 16,000 tokens of text, and as many places for labels
accumulate = 4
max_steps = 20000
lr = 1e-4                        # lower than from scratch
eval_interval = 1000
save_interval = 500
