"""Train and evaluate: takes a model and frames, yields steps and counts; knows no architecture and no dataset."""
