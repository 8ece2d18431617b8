# The first run: minutes on a laptop. For larger corpora and encoders see config/tibetan_base.py.
dataset = 'udhr'
encoder = 'data/nano'            # shipped; it has read these five languages
out_dir = 'out/tibetan'
languages = ('bo', 'ug', 'kk', 'mn', 'zh')
batch_tokens = 1024
max_steps = 300
lr = 1e-3
eval_interval = 100
eval_translations = 20           # chrF++ at the end
