# A small encoder from scratch on the Universal Declaration of Human Rights: what config/tibetan.py starts from.
objective = 'mlm'
dataset = 'udhr'
encoder = ''
out_dir = 'out/encoder'
languages = ('bo', 'ug', 'kk', 'mn', 'zh', 'en')
vocab_size = 1500
batch_tokens = 1024
max_steps = 800
lr = 1e-3
eval_interval = 200
