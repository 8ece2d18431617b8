"""From text to batches: tokenizer, token files, noise, batches; data/NAME/prepare.py reads one corpus each."""
