"""Corpora, tokenizers and batches; knows no model.

    corpus.load_corpus("stdlib" | file | folder) -> Corpus(name, train, validation, test), each a list of Document(name, data)
    tokenizer.load_tokenizer("bytes" | path of a tokenizer.json | tokenizer.spec()) -> ByteTokenizer | HFTokenizer
        .vocab_size .boundary .encode(bytes | str) -> int64 array .decode(ids) -> bytes .spec() .decoder() -> Decoder
        Decoder.feed(id) -> str (whole characters only), Decoder.flush() -> str
    batches.PackedBatches(documents, tokenizer, batch, window, seed)       independent windows, shuffled
    batches.ContiguousBatches(documents, tokenizer, batch, window, seed)   the state carries from one batch to the next
        both: endless iterators of Batch(tokens, targets, reset), .carries, .state_dict(), .load_state_dict()
    batches.EvaluationBatches(documents, tokenizer, batch, window, tokens=0, overlap=0)   every token once; .bytes .tokens .text
"""
