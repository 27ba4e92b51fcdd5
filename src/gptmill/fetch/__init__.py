"""Files and repositories from elsewhere: data, tokenizers and weights, by one downloader."""
