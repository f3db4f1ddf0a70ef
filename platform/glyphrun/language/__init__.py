"""What is known of texts before one is read: words with frequencies, confusions, language models."""
