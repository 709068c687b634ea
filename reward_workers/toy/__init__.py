"""The tiny metrics of the embedded default, and how they are made.

`train_metricx` and `train_xcomet` teach models of under a million parameters to find synthetic errors (`errors`,
`damage`) in the English-Korean pairs of `jax_rl.toy.text`; `evaluate` measures them on held-out pairs. They share
formats, loaders and failure surfaces with the real checkpoints, and nothing of their quality. The recipe:

1. Errors are made afresh for every batch, in pairs or in two joined pairs (`pairs`): fixed ones would be memorised.
2. A small SentencePiece model; embeddings from latent semantic analysis, so translations start as neighbours (`start`).
3. Word tags and the sentence score are learnt together; the tags are the dense signal without which training stalls.
4. MetricX, which has no tags of its own, gets them while it trains, beside a ranking loss within triples of one clean
   and two damaged translations. Heads that find copies, fields and counterparts are there from the start
   (`start_metricx`): without them it rewarded repetition.
5. The checkpoints are written as the real ones are and load through the workers' code alone.
"""
