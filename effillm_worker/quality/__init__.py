"""How good the loaded weights still are: perplexity, agreement with the unquantized model, tasks; and where time goes."""
