# An encoder learns, by masked LM, the pieces that data/vocabulary.py has added:
#     python train.py config/vocabulary/new_script.py --data_from=MY_TEXT
# These sizes are for a laptop: 20 minutes on two cores with six layers of 384. For a GPU and 100 MB
# of text or more: --batch_tokens=8192 --accumulate=4 --max_steps=20000 --lr=1e-4 --dropout=0.1
# --block_size=256 (not tried).
objective = 'mlm'
dataset = 'text'
encoder = 'out/extended'         # what `python -m data.vocabulary extend --out` wrote
languages = ('bo', 'zh')         # the new one, and the ones to translate from
out_dir = 'out/encoder'
block_size = 128
batch_tokens = 4096              # text and, as many again, labels
max_steps = 1000
lr = 5e-4
dropout = 0.0                    # few texts are read twice
mlm_ratio = 0.3                  # BERT's 0.15 gives half as many labels for the same time
val_fraction = 0.02
