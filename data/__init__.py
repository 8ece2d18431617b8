"""From text to batches: tokenizer, token files, noise, batches; data/NAME/prepare.py reads one corpus each."""
BOS, PAD, EOS, UNK = 0, 1, 2, 3              # <s> <pad> </s> <unk>: XLM-R's ids
