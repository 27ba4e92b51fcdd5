"""`gptmill serve`: the models the pipeline made, over HTTP, without PyTorch."""
