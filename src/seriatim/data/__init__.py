"""Corpora, tokenizers and batches; knows no model.

- `corpus.load_corpus("stdlib" | file | folder)`: a `Corpus(name, train, validation, test)` of `Document(name, data)`.
- `tokenizer.load_tokenizer("bytes" | path of a tokenizer.json | spec)`: a `Tokenizer` with `vocab_size`, `boundary`,
  `encode`, `decode`, `spec` and, for text that arrives token by token, `decoder()` with `feed(id) -> str` and
  `flush()`.
- `batches.ContiguousBatches(documents, tokenizer, batch, window, seed)`: the state carries from one batch to the next;
  `batches.PackedBatches(...)`: shuffled windows that stand alone. Endless iterators of `Batch(tokens, targets, reset)`
  with `carries`, `state_dict()` and `load_state_dict()`.
- `evaluation.EvaluationBatches(documents, tokenizer, batch, window, tokens, overlap)`: every token once; `bytes`,
  `tokens`, `text`.
"""
