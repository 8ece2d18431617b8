# A small encoder from scratch on the Universal Declaration of Human Rights: what config/tibetan.py starts from.
objective = 'mlm'
dataset = 'udhr'
encoder = ''
out_dir = 'out/encoder'
languages = ('bo', 'ug', 'kk', 'mn', 'zh', 'en')
vocab_size = 1500
batch_tokens = 2048
max_steps = 500
lr = 1e-3
