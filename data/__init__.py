"""Text files to batches: text/prepare, tokenizer, dataset, tasks, batches, in that order."""
