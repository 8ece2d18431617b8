# An encoder learns the pieces that data/vocab.py has added to its vocabulary, by masked tokens:
#     python train.py config/new_script.py --data_from=MY_TEXT --encoder=extended --languages=bo
# The languages of the new pieces are enough; with others beside them, the encoder forgets less of these.
objective = 'mlm'
dataset = 'text'
languages = ('bo',)
out_dir = 'out/encoder'
batch_tokens = 8192
accumulate = 4
max_steps = 20000
lr = 1e-4
eval_interval = 1000
save_interval = 500
