# The first run: minutes on a laptop. For larger corpora and encoders see config/tibetan_base.py.
dataset = 'udhr'
encoder = 'data/small'           # included; it knows these five languages
out_dir = 'out/tibetan'
languages = ('bo', 'ug', 'kk', 'mn', 'zh')
share = 'alternate'              # a decoder of three layers, made from the encoder's six
freeze = True                    # the encoder would forget more than 80 paragraphs can teach it
batch_tokens = 512
max_steps = 700
lr = 1e-3
eval_interval = 700              # so best/ is the last: outputs improve while the loss rises again
eval_translations = 20           # chrF++ at the end
