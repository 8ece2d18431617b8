# A small encoder from scratch on the Universal Declaration of Human Rights: what config/tibetan.py starts from.
objective = 'mlm'
dataset = 'udhr'
encoder = ''
out_dir = 'out/encoder'
languages = 'bo,ug,kk,mn,zh,en'.split(',')
vocab_size = 3000
max_steps = 600
lr = 1e-3
