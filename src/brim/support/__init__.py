"""What knows nothing of language models: files, tables, figures, progress."""
