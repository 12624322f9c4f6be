"""Training: a plain loop, optimisers, schedules, checkpoints and the log.

    from seriatim.train.settings import TrainSettings      # light: no torch
    from seriatim.train.run_folder import RunFolder        # light: no torch
    from seriatim.train.loop import fit
    from seriatim.train.evaluate import evaluate
    from seriatim.train.checkpoint import load

How the parts meet (what the command line does):

    settings = TrainSettings(steps=50)
    config = {"model": model_spec, "data": "stdlib", "tokenizer": tokenizer.spec(), "train": settings.plain()}
    run = RunFolder("runs/r1", config, resume=False)       # raises SeriatimError before anything is written
    corpus = load_corpus("stdlib")                         # seriatim.data.corpus
    tokenizer = load_tokenizer("bytes")                    # seriatim.data.tokenizer
    seed(settings.seed)                                    # seriatim.train.generators: before the weights are drawn
    model = build(model_spec)
    batches = ContiguousBatches(corpus.train, tokenizer, settings.batch, settings.window, settings.seed)
    held_out = EvaluationBatches(corpus.validation, tokenizer, batch=16, window=settings.window, tokens=100_000)
    result = fit(model, next_token, batches, settings, run, evaluation=lambda model: evaluate(model, held_out))

`fit` raises KeyboardInterrupt on Ctrl-C after it has saved; the exception's text says how to resume (status 130).
"""
