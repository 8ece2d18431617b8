"""Text files to batches. Read text/prepare, tokenizer, dataset, noise, tasks, batches, in that order."""
