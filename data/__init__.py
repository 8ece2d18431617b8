"""Text files to batches: text/prepare, tokenizer, dataset, noise, tasks, batches, in that order."""
