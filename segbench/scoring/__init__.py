"""Label maps in, counts out; counts in, scores out. No torch.

`spec` says what is counted, `count` counts a pair of maps, `counts` keeps what was counted of a split, `scores` reads
it.
"""
