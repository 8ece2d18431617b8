# The first run: minutes on a laptop. For your own text see config/laptop.py.
dataset = 'udhr'
encoder = 'data/small'           # included; it knows these five languages
out_dir = 'out/tibetan'
languages = ('bo', 'ug', 'kk', 'mn', 'zh')
share = 'alternate'              # a decoder of three layers, made from the encoder's six
freeze = True                    # from 67 paragraphs it would forget more than it learns
mt_fraction = 0.75               # mostly translation
batch_tokens = 512
max_steps = 1300
dropout = 0.0                    # faster, and outputs are no worse
lr = 1e-3                        # as the encoder is frozen; otherwise see config/laptop.py
eval_interval = 1300             # so that best/ is the last: outputs improve while the loss rises
eval_translations = 20           # chrF++ at the end
